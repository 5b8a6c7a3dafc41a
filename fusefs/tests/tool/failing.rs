//! Exit codes and what is said beside them.

use std::fs;

use crate::harness::{Swarm, tool};

#[test]
fn each_failure_has_its_code() {
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), b"f").unwrap();
    swarm.run(&["put", "f", "/f"]);
    for arguments in [&["cat", "/absent"][..], &["get", "/absent", "x"], &["rm", "/absent"], &["ls", "/absent"]] {
        let said = swarm.fails(66, arguments);
        assert!(said.contains("/absent: no such file or folder"), "{said}");
    }
    swarm.fails(66, &["put", "absent", "/"]);
    swarm.fails(1, &["cat", "/"]);
    swarm.fails(1, &["ls", "/f/x"]);
    swarm.fails(1, &["mkdir", "/f"]);
    swarm.fails(2, &["put", "f"]);
    swarm.fails(2, &["rm", "/"]);
    swarm.fails(2, &["frobnicate"]);
    // Not that --replace would help.
    fs::write(swarm.path("empty"), b"").unwrap();
    for file in ["f", "empty"] {
        let said = swarm.fails(65, &["catalog", "import", file]);
        assert!(said.contains("not an exported catalog") && !said.contains("--replace"), "{said}");
    }
    swarm.fails(78, &["--tracker", "a b", "status"]);
    let said = swarm.fails(78, &["--patience", "soon", "status"]);
    assert!(said.contains("--patience"), "{said}");
}

#[test]
fn a_tracker_that_is_not_there_is_said_so_in_time() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = port.to_string();
    let began = std::time::Instant::now();
    let output = tool().args(["-t", &address, "--patience", "1s", "status"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains(&address) && said.contains("SWARM_TRACKER"), "{said}");
    eprintln!("said so after {:?}", began.elapsed());
}

#[test]
fn what_answers_and_is_no_tracker_is_said_to_be_none() {
    let swarm = Swarm::start();
    let peers = swarm.json(&["peers", "--json"]);
    let seeder = peers[0]["address"].as_str().unwrap();
    let said = swarm.fails(69, &["-t", seeder, "--patience", "1s", "ls", "/"]);
    assert!(said.contains(seeder) && said.contains("no swarm-tracker") && said.contains("--listen"), "{said}");
}

#[test]
fn without_any_tracker_it_says_how_to_name_one() {
    let output = tool().arg("status").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78));
    assert!(said.contains("SWARM_TRACKER") && said.contains("swarmfs up"), "{said}");
}

#[test]
fn what_fails_is_named_and_the_rest_goes_on() {
    let swarm = Swarm::start();
    for name in ["a", "b"] {
        fs::write(swarm.path(name), name).unwrap();
    }
    let said = swarm.fails(66, &["put", "a", "absent", "b", "/"]);
    assert!(said.contains("absent"), "{said}");
    assert_eq!((swarm.run(&["cat", "/a"]), swarm.run(&["cat", "/b"])), ("a".to_owned(), "b".to_owned()));
    let said = swarm.fails(66, &["get", "/a", "/gone", "."]);
    assert!(said.contains("/gone"), "{said}");
    let said = swarm.fails(66, &["rm", "/gone", "/a", "/b"]);
    assert!(said.contains("/gone"), "{said}");
    assert_eq!(swarm.run(&["ls", "/"]), "");
}

#[test]
fn what_is_there_is_shown_also_beside_what_is_not() {
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), "here").unwrap();
    swarm.run(&["put", "f", "/f"]);
    for words in [&["cat"][..], &["stat"], &["stat", "--json"], &["ls"], &["ls", "-l"], &["ls", "--json"]] {
        let words = [words, &["/gone", "/f", "/away"]].concat();
        let output = swarm.try_run(&words);
        let [out, said] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let shown = if words[0] == "cat" { "here" } else { "/f" };
        assert_eq!(output.status.code(), Some(66), "{words:?}: {said}");
        assert!(out.contains(shown) && said.contains("/gone") && said.contains("/away"), "{words:?}: {out} {said}");
    }
}

#[test]
fn what_cannot_be_said_is_an_error_and_no_panic() {
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), "here").unwrap();
    let commands: [&[&str]; 6] = [
        &["put", "f", "/f"],
        &["get", "/f", "copy"],
        &["cat", "/f", "/f"],
        &["ls", "/"],
        &["catalog", "export", "names"],
        &["ls", "--print-config"],
    ];
    for words in commands {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = swarm.command().args(words).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("standard output"), "{words:?}: {said}");
        // Who would have read it has gone.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = swarm.command().args(words).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn who_does_not_hear_what_failed_has_the_code() {
    let swarm = Swarm::start();
    for words in [&["ls", "/nx", "/ny"][..], &["rm", "/nx"], &["cat", "/nx", "/ny"], &["put", "nx", "ny", "/"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = swarm.command().args(words).stderr(full).output().unwrap();
        assert_eq!(output.status.code(), Some(66), "{words:?}");
    }
}

#[test]
fn a_name_that_is_too_long_is_refused_by_name() {
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), b"f").unwrap();
    let said = swarm.fails(1, &["put", "f", &format!("/{}", "n".repeat(256))]);
    assert!(said.contains("255") || said.contains("long"), "{said}");
}

#[test]
fn a_folder_without_permission_is_77() {
    if rustix::process::geteuid().is_root() {
        return eprintln!("skipped: root may write everywhere");
    }
    let swarm = Swarm::start();
    fs::write(swarm.path("f"), b"f").unwrap();
    swarm.run(&["put", "f", "/f"]);
    swarm.fails(77, &["get", "/f", "/"]);
}
