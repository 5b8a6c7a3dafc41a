//! A Cargo project built inside the mount: locks, hard links, memory maps, times that decide what is built.

use std::path::Path;

use crate::place::Place;
use crate::program::program;

const CRATES: [&str; 4] = ["base", "middle", "other", "top"];

/// A workspace in which `top` uses `middle` and `other`, and these use `base`.
fn write_workspace(folder: &Path) {
    let write = |path: &str, text: &str| {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("Cargo.toml", "[workspace]\nmembers = [\"base\", \"middle\", \"other\", \"top\"]\nresolver = \"2\"\n");
    for name in CRATES {
        let needs: &[&str] = match name {
            "top" => &["middle", "other"],
            "base" => &[],
            _ => &["base"],
        };
        let needs: String = needs.iter().map(|other| format!("{other} = {{ path = \"../{other}\" }}\n")).collect();
        let package = format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n");
        write(&format!("{name}/Cargo.toml"), &format!("{package}\n[dependencies]\n{needs}"));
    }
    write("base/src/lib.rs", "mod table;\npub fn word() -> &'static str {\n    table::WORDS[7]\n}\n");
    let words: String = (0..2_000).map(|index| format!("    \"word-{index}\",\n")).collect();
    write("base/src/table.rs", &format!("pub const WORDS: [&str; 2000] = [\n{words}];\n"));
    write("middle/src/lib.rs", "pub fn middle() -> String {\n    format!(\"middle {}\", base::word())\n}\n");
    write(
        "other/src/lib.rs",
        "#[test]\nfn works() {\n    assert_eq!(other(), 6);\n}\npub fn other() -> usize {\n    base::word().len()\n}\n",
    );
    write("other/build.rs", "fn main() {\n    println!(\"cargo:rerun-if-changed=build.rs\");\n}\n");
    write("top/src/main.rs", "fn main() {\n    println!(\"{} {}\", middle::middle(), other::other());\n}\n");
}

fn cargo(folder: &Path, words: &[&str]) -> String {
    let ended = program(env!("CARGO")).inside(folder).args(words).arg("--offline").ok();
    eprintln!("cargo {words:?} took {:?}", ended.took);
    String::from_utf8_lossy(&[ended.out, ended.err].concat()).into_owned()
}

#[test]
fn a_workspace_is_built_tested_and_built_again_only_where_it_changed() {
    let mut place = Place::one();
    let folder = place.path("project");
    write_workspace(&folder);
    let first = cargo(&folder, &["run"]);
    assert!(first.contains("middle word-7 6"), "{first}");
    let again = cargo(&folder, &["build"]);
    assert!(!again.contains("Compiling"), "built anew though nothing changed: {again}");

    let source = folder.join("middle/src/lib.rs");
    std::fs::write(&source, std::fs::read_to_string(&source).unwrap().replace("\"middle", "\"changed")).unwrap();
    let changed = cargo(&folder, &["run"]);
    assert!(changed.contains("changed word-7 6"), "{changed}");
    let compiled = |name: &str| changed.contains(&format!("Compiling {name} "));
    assert!(compiled("middle") && compiled("top") && !compiled("base") && !compiled("other"), "{changed}");

    place.remount();
    let again = cargo(&folder, &["build"]);
    assert!(!again.contains("Compiling"), "built anew after a remount: {again}");
    let tested = cargo(&folder, &["test", "--quiet", "--package", "other"]);
    assert!(tested.contains("1 passed"), "{tested}");
    cargo(&folder, &["clean"]);
    assert!(!folder.join("target").exists());
    place.end();
}
