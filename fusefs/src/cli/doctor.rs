//! `swarmfs doctor`: what stands in the way of a mount here, and the line that mends it.

use clap::Args;
use serde::Serialize;

use super::connect::Tool;
use super::exit::{Exit, Failure, Outcome};
use super::show::Out;
use crate::mount::doctor::{Finding, System};

/// Say what stands in the way of a mount here, and the line that mends it.
#[derive(Debug, Args)]
pub struct Doctor {
    /// For a mount that other users shall see too
    #[arg(long)]
    allow_other: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// What `doctor --json` shows; documented in docs/CLI.md.
#[derive(Debug, Serialize)]
struct Report {
    can_mount: bool,
    findings: Vec<JsonFinding>,
    tracker: TrackerFinding,
}

#[derive(Debug, Serialize)]
struct JsonFinding {
    part: String,
    problem: String,
    remedy: String,
}

#[derive(Debug, Serialize)]
struct TrackerFinding {
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    reachable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Doctor {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let findings = System::this().check(self.allow_other);
        let tracker = tracker(tool).await;
        let report = Report { can_mount: findings.is_empty(), findings: findings.iter().map(json).collect(), tracker };
        let mut out = Out::new();
        match self.json {
            true => out.json(&report)?,
            false => text(&report).iter().try_for_each(|line| out.line(line))?,
        }
        out.finish()?;
        match (report.can_mount, report.tracker.reachable || report.tracker.address.is_none()) {
            (false, _) => Err(Failure::new(Exit::Unreachable, "a swarm cannot be mounted here as things stand")),
            (true, false) => Err(Failure::new(Exit::Unreachable, "the tracker does not answer")),
            (true, true) => Ok(()),
        }
    }
}

async fn tracker(tool: &Tool) -> TrackerFinding {
    let address = match tool.address() {
        Ok(address) => address,
        Err(failure) => {
            return TrackerFinding { address: None, reachable: false, problem: Some(failure.message) };
        }
    };
    let asked = async {
        let connection = tool.connect_to(address.clone()).map_err(|failure| failure.message)?;
        connection.tracker.stat_fs().await.map_err(|error| error.to_string())
    };
    let problem = asked.await.err();
    TrackerFinding { address: Some(address.to_string()), reachable: problem.is_none(), problem }
}

fn json(finding: &Finding) -> JsonFinding {
    JsonFinding { part: finding.part.clone(), problem: finding.problem.clone(), remedy: finding.remedy.clone() }
}

fn text(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if report.can_mount {
        lines.push("mounting: nothing stands in the way".to_owned());
    }
    for finding in &report.findings {
        lines.push(format!("{}: {}", finding.part, finding.problem));
        lines.push(format!("  mend it with: {}", finding.remedy));
    }
    lines.push(match (&report.tracker.address, &report.tracker.problem) {
        (Some(address), None) => format!("tracker: {address} answers"),
        (_, Some(problem)) => format!("tracker: {problem}"),
        (None, None) => "tracker: none given".to_owned(),
    });
    lines
}
