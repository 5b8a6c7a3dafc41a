//! `swarmfs status`: health at a glance, and what to worry about.

use clap::Args;
use serde::Serialize;
use swarm_proto::settings::{ByteCount, Span};
use swarm_proto::v1::StatusReply;

use super::connect::{Tool, tracker_failure};
use super::exit::Outcome;
use super::name::hex;
use super::show::Out;

/// Show the health of the swarm.
#[derive(Debug, Args)]
pub struct Status {
    /// As one JSON object
    #[arg(long)]
    json: bool,
    /// Count health against this many replicas instead of the swarm's own setting
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    replicas: u32,
}

/// The swarm, as `status --json` shows it; documented in docs/CLI.md.
#[derive(Debug, Serialize)]
struct Report {
    swarm_id: String,
    health: &'static str,
    warnings: Vec<String>,
    segments: Segments,
    files: u64,
    directories: u64,
    bytes_logical: u64,
    bytes_distinct: u64,
    bytes_capacity: u64,
    bytes_used: u64,
    bytes_free: u64,
    seeders: Seeders,
    mounts_live: u32,
    replicas: u32,
    min_replicas: u32,
    tracker: TrackerReport,
}

#[derive(Debug, Serialize)]
struct Segments {
    total: u64,
    healthy: u64,
    under_replicated: u64,
    over_replicated: u64,
    missing: u64,
    corrupt: u64,
}

#[derive(Debug, Serialize)]
struct Seeders {
    live: u32,
    stale: u32,
    dead: u32,
    hosts: u32,
}

#[derive(Debug, Serialize)]
struct TrackerReport {
    address: String,
    boot_id: String,
    revision: u64,
    version: String,
    uptime_ms: u64,
}

impl Report {
    fn new(status: &StatusReply, address: String) -> Self {
        Self {
            swarm_id: hex(&status.swarm_id),
            health: health(status),
            warnings: warnings(status),
            segments: Segments {
                total: status.segments,
                healthy: status.healthy,
                under_replicated: status.under_replicated,
                over_replicated: status.over_replicated,
                missing: status.missing,
                corrupt: status.corrupt,
            },
            files: status.files,
            directories: status.directories,
            bytes_logical: status.logical_bytes,
            bytes_distinct: status.distinct_bytes,
            bytes_capacity: status.capacity_bytes,
            bytes_used: status.used_bytes,
            bytes_free: status.free_bytes,
            seeders: Seeders {
                live: status.seeders_live,
                stale: status.seeders_stale,
                dead: status.seeders_dead,
                hosts: status.seeder_hosts,
            },
            mounts_live: status.mounts_live,
            replicas: status.replicas,
            min_replicas: status.min_replicas,
            tracker: TrackerReport {
                address,
                boot_id: hex(&status.boot_id),
                revision: status.revision,
                version: status.version.clone(),
                uptime_ms: status.uptime_ms,
            },
        }
    }
}

/// One word for all of it: `broken` if data cannot be read now, `degraded` if it is less safe than asked for.
fn health(status: &StatusReply) -> &'static str {
    if status.missing > 0 || status.seeders_live + status.seeders_stale == 0 {
        return "broken";
    }
    match status.under_replicated + status.corrupt > 0 || status.seeders_stale > 0 {
        true => "degraded",
        false => "healthy",
    }
}

/// Whether nobody has used it yet, as after the loss of its catalog.
fn is_new(status: &StatusReply) -> bool {
    status.files == 0
        && status.directories <= 1
        && status.seeders_live + status.seeders_stale + status.seeders_dead == 0
}

/// What a person should know, each with what to do.
fn warnings(status: &StatusReply) -> Vec<String> {
    let mut warnings = Vec::new();
    if status.seeders_live == 0 {
        let start = match is_new(status) {
            // Any seeder that joins it makes it a swarm of its own.
            true => {
                "start one with `swarm-seeder`; but if this tracker lost its catalog, `swarmfs catalog import` comes first"
            }
            false => "start one with `swarm-seeder`",
        };
        warnings.push(format!("no seeder is up: nothing can be stored; {start}"));
    }
    if status.missing > 0 {
        let what_helps = match status.seeders_stale + status.seeders_dead > 0 {
            true => "start the seeders that hold them (`swarmfs peers` lists the dead ones)",
            false => "`swarmfs put` of the same files brings them back",
        };
        warnings.push(format!("{} segments have no live replica: {what_helps}", status.missing));
    }
    if status.seeders_stale > 0 {
        let seeders = counted(u64::from(status.seeders_stale), "seeder");
        warnings.push(format!(
            "{seeders} fell silent a moment ago, and what they hold still counts: is it starting again?"
        ));
    }
    if status.seeders_dead > 0 {
        let seeders = counted(u64::from(status.seeders_dead), "seeder");
        warnings.push(format!("{seeders} cannot be reached: `swarmfs peers` lists what is dead"));
    }
    if status.corrupt > 0 {
        warnings
            .push(format!("{} copies of segments are corrupt where they lie: a disk may be failing", status.corrupt));
    }
    if status.under_replicated > 0 {
        let why = match status.seeders_live < status.replicas {
            true => "there are too few seeders: add some",
            false => "mounts send what they wrote by themselves; `swarmfs put` of the same files sends what is lacking",
        };
        warnings
            .push(format!("{} segments have fewer than {} replicas; {why}", status.under_replicated, status.replicas));
    }
    if status.seeders_live > 0 && status.seeder_hosts < status.min_replicas {
        warnings.push(format!(
            "all seeders run on {}, fewer than min_replicas ({}): data does not survive the loss of a machine; \
             add a seeder on another one",
            counted(u64::from(status.seeder_hosts), "machine"),
            status.min_replicas
        ));
    }
    if status.capacity_bytes > 0 && status.free_bytes < status.capacity_bytes / 20 {
        let left = ByteCount(status.free_bytes);
        warnings.push(format!(
            "only {left} of room is left: add seeders, or give them larger disks (removing gives none back yet)"
        ));
    }
    warnings
}

/// `1 file`, `2 files`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

impl Status {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let status = connection
            .tracker
            .status(self.replicas)
            .await
            .map_err(|error| tracker_failure("ask for status", &error))?;
        let report = Report::new(&status, connection.tracker.address().to_string());
        let mut out = Out::new();
        match self.json {
            true => out.json(&report)?,
            false => text(&report).iter().try_for_each(|line| out.line(line))?,
        }
        out.finish()
    }
}

fn text(report: &Report) -> Vec<String> {
    let segments = &report.segments;
    let mut counts = vec![format!("{} healthy", segments.healthy)];
    let others = [
        (segments.under_replicated, "under-replicated"),
        (segments.over_replicated, "over-replicated"),
        (segments.missing, "missing"),
        (segments.corrupt, "corrupt"),
    ];
    counts.extend(others.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")));
    let seeders = &report.seeders;
    let mut states = vec![format!("{} live", seeders.live)];
    let others = [(seeders.stale, "stale"), (seeders.dead, "dead")];
    states.extend(others.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")));
    let uptime = std::time::Duration::from_secs(report.tracker.uptime_ms / 1_000);
    let mut lines = vec![
        format!("{}: {} in {}", report.health, counted(report.files, "file"), counted(report.directories, "folder")),
        format!("segments  {} ({} in all)", counts.join(", "), segments.total),
        format!(
            "data      {}, {} without duplicates, {} replicas of each wanted, {} acknowledged before a commit",
            ByteCount(report.bytes_logical),
            ByteCount(report.bytes_distinct),
            report.replicas,
            report.min_replicas
        ),
        format!(
            "disks     {} used, {} free of {}",
            ByteCount(report.bytes_used),
            ByteCount(report.bytes_free),
            ByteCount(report.bytes_capacity)
        ),
        format!("seeders   {} on {}", states.join(", "), counted(u64::from(seeders.hosts), "machine")),
        format!("mounts    {} live", report.mounts_live),
        format!(
            "tracker   {}, version {}, up {}, revision {}",
            report.tracker.address,
            report.tracker.version,
            Span(uptime),
            report.tracker.revision
        ),
    ];
    lines.extend(report.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> StatusReply {
        StatusReply {
            segments: 6,
            healthy: 6,
            seeders_live: 3,
            seeder_hosts: 3,
            replicas: 3,
            min_replicas: 2,
            capacity_bytes: 100,
            free_bytes: 50,
            ..StatusReply::default()
        }
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = serde_json::to_value(Report::new(&sample(), "swarm://a:1".to_owned())).unwrap();
        assert_eq!(
            json["segments"],
            serde_json::json!({
                "total": 6, "healthy": 6, "under_replicated": 0, "over_replicated": 0, "missing": 0, "corrupt": 0
            })
        );
        let documented = include_str!("../../../docs/CLI.md");
        let mut keys: Vec<String> = json.as_object().unwrap().keys().cloned().collect();
        for part in ["segments", "seeders", "tracker"] {
            keys.extend(json[part].as_object().unwrap().keys().cloned());
        }
        for key in keys {
            assert!(documented.contains(&format!("`{key}`")), "docs/CLI.md lacks {key}");
        }
    }

    #[test]
    fn a_healthy_swarm_has_no_warning() {
        assert_eq!((health(&sample()), warnings(&sample()).len()), ("healthy", 0));
    }

    #[test]
    fn each_trouble_is_named() {
        let cases: [(StatusReply, &str, &str); 7] = [
            (StatusReply { seeder_hosts: 1, ..sample() }, "healthy", "another"),
            (StatusReply { missing: 1, ..sample() }, "broken", "no live replica"),
            (StatusReply { seeders_stale: 1, ..sample() }, "degraded", "1 seeder fell silent"),
            (StatusReply { seeders_dead: 2, ..sample() }, "healthy", "2 seeders cannot be reached"),
            (StatusReply { under_replicated: 2, ..sample() }, "degraded", "fewer than 3 replicas"),
            (StatusReply { seeders_live: 0, ..sample() }, "broken", "no seeder is up"),
            (StatusReply { free_bytes: 1, ..sample() }, "healthy", "room"),
        ];
        for (status, word, warning) in cases {
            assert_eq!(health(&status), word);
            let all = warnings(&status).join("\n");
            assert!(all.contains(warning), "{all}");
        }
    }
}
