//! A page of Prometheus metrics, as a test asks of it.

use std::collections::BTreeMap;

/// Samples by name with labels.
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
        Self(samples.collect())
    }

    /// Sum of all samples of a metric, whatever their labels. Panics, listing all, if there is none.
    #[track_caller]
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let own = |key: &str| key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
        let found: Vec<f64> = self.0.iter().filter(|(key, _)| own(key)).map(|(_, value)| *value).collect();
        let known = || self.0.keys().cloned().collect::<Vec<_>>().join("\n");
        assert!(!found.is_empty(), "no metric {name} among\n{}", known());
        found.iter().sum()
    }
}
