//! What is tried next. PURE.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::operation::{Access, Bytes, Operation, Path, SLOTS, View};
use super::reference::Reference;

/// All names that there are: few, so that operations meet.
const NAMES: &[u8] = b"abcde";

/// An operation that mostly names what is there.
pub(crate) fn next(rng: &mut SmallRng, reference: &Reference) -> Operation {
    let view: View = rng.random_range(0..2);
    let slots = reference.open_slots(view);
    let slot = match slots.choose(rng) {
        Some(slot) if rng.random_bool(0.95) => *slot,
        _ => rng.random_range(0..SLOTS),
    };
    let access = if rng.random_bool(0.5) { Access::Read } else { Access::Write };
    match rng.random_range(0..100) {
        0..8 => Operation::Create { view, path: new(rng, reference) },
        8..18 => Operation::Write { view, path: file(rng, reference), offset: offset(rng), bytes: bytes(rng) },
        18..20 => Operation::SetLength { view, path: file(rng, reference), length: offset(rng) },
        20..22 => Operation::Truncate { view, path: file(rng, reference) },
        22..36 => Operation::Read { view, path: file(rng, reference) },
        36..42 => Operation::Stat { view, path: any(rng, reference) },
        42..46 => Operation::List { view, path: folder(rng, reference) },
        46..48 => Operation::ReadLink { view, path: any(rng, reference) },
        48..51 => Operation::Chmod {
            view,
            path: any(rng, reference),
            mode: *[0o600, 0o644, 0o700, 0o755].choose(rng).expect("some"),
        },
        51..57 => Operation::Rename { view, from: any(rng, reference), to: either(rng, reference) },
        57..58 => Operation::Exchange { view, from: any(rng, reference), to: any(rng, reference) },
        58..61 => Operation::Link { view, from: any(rng, reference), to: either(rng, reference) },
        61..63 => Operation::Symlink { view, path: new(rng, reference), target: target(rng) },
        63..67 => Operation::MakeFolder { view, path: new(rng, reference) },
        67..72 => Operation::Unlink { view, path: file(rng, reference) },
        72..74 => Operation::RemoveFolder { view, path: any(rng, reference) },
        74..79 => Operation::Open { view, slot: rng.random_range(0..SLOTS), path: file(rng, reference), access },
        79..86 => Operation::HandleRead { view, slot },
        86..92 => Operation::HandleWrite { view, slot, offset: offset(rng), bytes: bytes(rng) },
        92..94 => Operation::HandleSetLength { view, slot, length: offset(rng) },
        94..96 => Operation::HandleSync { view, slot },
        _ => Operation::HandleClose { view, slot },
    }
}

/// Something that is there, mostly.
fn any(rng: &mut SmallRng, reference: &Reference) -> Path {
    let paths = reference.paths();
    match paths.choose(rng) {
        Some((path, _)) if rng.random_bool(0.9) => path.clone(),
        _ => new(rng, reference),
    }
}

/// A file that is there, mostly.
fn file(rng: &mut SmallRng, reference: &Reference) -> Path {
    let mut paths = reference.paths();
    paths.retain(|(_, is_folder)| !is_folder);
    match paths.choose(rng) {
        Some((path, _)) if rng.random_bool(0.95) => path.clone(),
        _ => any(rng, reference),
    }
}

/// A folder that is there, mostly; the outermost too.
fn folder(rng: &mut SmallRng, reference: &Reference) -> Path {
    let mut paths = reference.paths();
    paths.retain(|(_, is_folder)| *is_folder);
    paths.push((Path::default(), true));
    paths.choose(rng).expect("the outermost").0.clone()
}

/// A name in some folder, perhaps new.
fn new(rng: &mut SmallRng, reference: &Reference) -> Path {
    let mut path = match rng.random_bool(0.95) {
        true => folder(rng, reference),
        false => file(rng, reference),
    };
    path.0.truncate(4);
    path.0.push(*NAMES.choose(rng).expect("some"));
    path
}

fn either(rng: &mut SmallRng, reference: &Reference) -> Path {
    if rng.random_bool(0.7) { new(rng, reference) } else { any(rng, reference) }
}

/// What a link says: names beside it or above.
fn target(rng: &mut SmallRng) -> String {
    let name = |rng: &mut SmallRng| char::from(*NAMES.choose(rng).expect("some")).to_string();
    match rng.random_range(0..4) {
        0 => format!("../{}", name(rng)),
        1 => format!("{}/{}", name(rng), name(rng)),
        _ => name(rng),
    }
}

/// Mostly within a few chunks, now and then in another segment.
fn offset(rng: &mut SmallRng) -> usize {
    match rng.random_range(0..100) {
        0 => rng.random_range(4_000_000..4_400_000),
        1..10 => rng.random_range(0..300_000),
        10..20 => rng.random_range(0..4) * 16_384,
        _ => rng.random_range(0..20_000),
    }
}

fn bytes(rng: &mut SmallRng) -> Bytes {
    let length = match rng.random_range(0..20) {
        0 => rng.random_range(0..200_000),
        1 => 0,
        _ => rng.random_range(0..9_000),
    };
    Bytes { fill: rng.random(), length }
}
