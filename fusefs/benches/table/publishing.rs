//! Publishing.

use super::harness::{Swarm, write_random};
use super::measure::{preload, seconds};
use super::report::{Report, ratio, spread};

const GIB: u64 = 1 << 30;

pub(crate) fn run(report: &mut Report) {
    if !report.wants("put") {
        return;
    }
    let swarm = Swarm::start(3);
    report.section(
        "`put` of 1 GiB with two replicas, seconds",
        &["swarmfs put", "`cp` twice + `sync`", "(cp + sync) ÷ put"],
    );
    let (mut ours, mut copies) = (vec![], vec![]);
    for round in 0..report.rounds {
        let source = swarm.scratch("source");
        write_random(&source, GIB, round as u64 + 50);
        seconds("sync");
        preload(&source);
        let binary = super::harness::process::binary("swarmfs");
        ours.push(seconds(&format!(
            "SWARM_TRACKER={} {} put --replicas 2 {} /put-{round}",
            swarm.tracker_url,
            binary.display(),
            source.display()
        )));
        swarm.cli(&["rm", &format!("/put-{round}")]);
        seconds("sync");
        let (a, b) = (swarm.scratch("copy-a"), swarm.scratch("copy-b"));
        let source = source.display();
        copies.push(seconds(&format!("cp {source} {0} && cp {source} {1} && sync {0} {1}", a.display(), b.display())));
        std::fs::remove_file(a).expect("remove a copy");
        std::fs::remove_file(b).expect("remove a copy");
    }
    report.row(&[spread(&ours, 2), spread(&copies, 2), format!("{:.2}", ratio(&copies, &ours))]);
}
