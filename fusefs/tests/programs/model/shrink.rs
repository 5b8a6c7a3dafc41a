//! How a failing history gets short: leave out parts, ever smaller ones, as long as it still fails. PURE.

use super::operation::Operation;

/// Tries after which the shortest found so far is good enough.
const MOST_TRIES: usize = 400;

/// The shortest history found that fails, and how.
///
/// `fails` says how a history fails. Any part of a history is one: what has no meaning without what was left out
/// is passed over by who runs it.
pub(crate) fn shortest(
    mut history: Vec<Operation>,
    mut difference: String,
    fails: impl Fn(&[Operation]) -> Option<String>,
) -> (Vec<Operation>, String) {
    let mut part = history.len().div_ceil(2);
    let mut tries = 0;
    while part > 0 && tries < MOST_TRIES {
        let (mut start, mut shorter) = (0, false);
        while start < history.len() && tries < MOST_TRIES {
            let end = (start + part).min(history.len());
            let without = [&history[..start], &history[end..]].concat();
            tries += 1;
            match fails(&without) {
                Some(found) => (history, difference, shorter) = (without, found, true),
                None => start = end,
            }
        }
        if part == 1 && !shorter {
            break;
        }
        part = if part == 1 { 1 } else { part.div_ceil(2) };
    }
    (history, difference)
}
