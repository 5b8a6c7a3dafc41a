//! What `docs/SEMANTICS.md` lists as not holding: the tests allow just that, so that they cannot differ from it.

use std::collections::BTreeMap;

const SEMANTICS: &str = include_str!("../../../docs/SEMANTICS.md");

/// The rows of the table `| test | reason |` below a heading of docs/SEMANTICS.md.
#[track_caller]
pub(crate) fn listed(heading: &str) -> BTreeMap<&'static str, &'static str> {
    let section = SEMANTICS.split("\n## ").find(|section| section.lines().next() == Some(heading));
    let section = section.unwrap_or_else(|| panic!("docs/SEMANTICS.md has no heading «{heading}»"));
    let mut rows = BTreeMap::new();
    let after = section.lines().skip_while(|line| *line != "| test | reason |").skip(2);
    for line in after.take_while(|line| line.starts_with('|')) {
        let row = line.trim_matches(['|', ' ']).split_once(" | ");
        let (test, reason) = row.unwrap_or_else(|| panic!("not a row «| test | reason |»: {line}"));
        let (test, reason) = (test.trim().trim_matches('`'), reason.trim());
        assert!(!test.is_empty() && reason.len() > 10, "a row of docs/SEMANTICS.md without a reason: {line}");
        rows.insert(test, reason);
    }
    rows
}
