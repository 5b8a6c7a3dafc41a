//! How much it keeps, and what gives way.

use super::*;

#[test]
fn ten_times_the_limit_stays_within_it_and_the_oldest_go_first() {
    let dir = TempDir::new().unwrap();
    let limit = 4 << 20;
    let store = CacheStore::open(config(dir.path(), limit)).unwrap();
    let samples: Vec<_> = (0..80).map(|seed| Sample::plain(512 * 1024, 128 * 1024, 100 + seed)).collect();
    for sample in &samples {
        let file = sample.open(&store);
        sample.fill(&file, sample.all()).unwrap();
        sample.expect(&file, sample.all());
        assert!(store.usage().used_bytes <= limit);
        assert!(disk_use(&dir.path().join("files")) <= limit, "the disk has more than the limit");
    }
    let kept: Vec<bool> = samples.iter().map(|sample| store.manifest(&sample.digest).is_some()).collect();
    assert!(kept[79] && kept[76] && !kept[0], "{kept:?}");
    assert!(kept.windows(2).all(|pair| pair[0] <= pair[1]), "an older one outlived a newer one: {kept:?}");
    assert!(disk_use(&dir.path().join("files")) > limit / 2, "it threw away too much");
    drop(store);
    let store = CacheStore::open(config(dir.path(), limit / 4)).unwrap();
    assert!(disk_use(&dir.path().join("files")) <= limit / 4, "a smaller limit holds from the start");
    assert!(store.manifest(&samples[79].digest).is_some());
}

#[test]
fn an_open_file_keeps_its_data_and_what_finds_no_room_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = CacheStore::open(config(dir.path(), 1 << 20)).unwrap();
    let open = Sample::plain(600_000, 600_000, 1);
    let file = open.open(&store);
    open.fill(&file, open.all()).unwrap();
    let big = Sample::plain(3_000_000, 100_000, 2);
    let other = big.open(&store);
    assert!(matches!(big.fill(&other, big.all()), Err(StoreError::Full)));
    open.expect(&file, open.all());
    assert!(path_of(dir.path(), &open.digest, "data").exists(), "an open file was evicted");
    let cached = other.cached_bytes();
    assert!(cached > 0 && cached < 1 << 20);
    big.expect(&other, ByteRange::at(0, 100_000));
    assert!(disk_use(&dir.path().join("files")) <= 1 << 20);
    // Closed, it makes room.
    drop(file);
    big.fill(&other, ByteRange::at(0, 700_000)).unwrap();
    assert!(store.manifest(&open.digest).is_none());
}

#[test]
fn whoever_needs_room_more_gets_that_of_the_oldest_files_that_nobody_has_open() {
    let dir = TempDir::new().unwrap();
    let store = CacheStore::open(config(dir.path(), 1 << 30)).unwrap();
    let samples: Vec<_> = (0..4).map(|seed| Sample::plain(1 << 20, 1 << 20, seed)).collect();
    let open = samples[0].open(&store);
    for sample in &samples {
        sample.fill(&sample.open(&store), sample.all()).unwrap();
    }
    let before = disk_use(&dir.path().join("files"));
    let given = store.make_room(1_200_000);
    assert!(given >= 2 << 20 && disk_use(&dir.path().join("files")) <= before - (2 << 20), "{given}");
    let kept: Vec<bool> = samples.iter().map(|sample| store.manifest(&sample.digest).is_some()).collect();
    assert_eq!(kept, [true, false, false, true]);
    assert!(store.make_room(u64::MAX) >= 1 << 20);
    assert_eq!(store.make_room(1), 0, "only what is open is left");
    samples[0].expect(&open, samples[0].all());
}

#[test]
fn a_cache_of_no_bytes_or_below_the_floor_takes_nothing_and_breaks_nothing() {
    let sample = Sample::plain(50_000, 50_000, 1);
    for (size, free_space_ratio, spare_bytes) in [(0, 0.0, 0), (1 << 30, 1.0, 0), (1 << 30, 0.0, u64::MAX)] {
        let dir = TempDir::new().unwrap();
        let config = CacheConfig { dir: dir.path().to_owned(), size: ByteCount(size), free_space_ratio, spare_bytes };
        let store = CacheStore::open(config).unwrap();
        let file = sample.open(&store);
        assert!(matches!(sample.fill(&file, sample.all()), Err(StoreError::Full)));
        assert_eq!(disk_use(&dir.path().join("files")), 0);
    }
}

#[test]
fn many_threads_at_once_lose_nothing_and_stay_within_the_limit() {
    let dir = TempDir::new().unwrap();
    let limit = 6 << 20;
    let store = CacheStore::open(config(dir.path(), limit)).unwrap();
    let samples: Vec<_> = (0..24).map(|seed| Sample::plain(600_000, 150_000, seed)).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, samples, dir) = (&store, &samples, dir.path());
            scope.spawn(move || {
                for step in 0..60 {
                    let sample = &samples[(step * 7 + thread * 5) % samples.len()];
                    let file = sample.open(store);
                    let range = ByteRange::at((step as u64 * 77_777) % 500_000, 90_000);
                    // Refused is fine, wrong is not.
                    if sample.fill(&file, range).is_ok() && file.missing(range).is_empty() {
                        sample.expect(&file, range);
                    }
                    if step % 10 == 0 {
                        store.flush();
                        assert!(store.usage().used_bytes <= limit);
                        assert!(disk_use(&dir.join("files")) <= limit + (1 << 20));
                    }
                }
            });
        }
    });
    store.flush();
    let used = store.usage().used_bytes;
    let folders = fs::read_dir(dir.path().join("files")).unwrap().count() as u64;
    let on_disk = disk_use(&dir.path().join("files"));
    assert!(used <= on_disk && on_disk <= used + folders * 4096, "it counts {used}, the disk {on_disk}");
}
