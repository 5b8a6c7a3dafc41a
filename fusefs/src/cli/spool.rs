//! `swarmfs spool`: what was written and could not be saved.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use swarm_proto::settings::ByteCount;

use super::exit::{Exit, Failure, Outcome};
use super::name::escape;
use super::problems::Problems;
use super::show::{Out, columns, say, warn};
use crate::mount::status;
use crate::write::spool::{self, Note, State};

/// How long a retry may take to begin; then it goes on as long as it gets on.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// List, retry and discard what was written and could not be saved.
///
/// States: `retrying`: its close failed, and the mount tries it once more when the last program has closed it; `failed`: that
/// failed too; `saving`: it is being saved, now or when a mount has this spool; `interrupted`: the mount died before anybody
/// asked for it to be saved.
#[derive(Debug, Args)]
pub struct SpoolCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List it
    List {
        /// The folder that is mounted, or that of a spool
        folder: PathBuf,
        /// As JSON: an array with one object for each file
        #[arg(long)]
        json: bool,
    },
    /// Have the mount save it again; a file that others changed meanwhile becomes a conflict copy
    Retry {
        /// The folder that is mounted, or that of a spool
        folder: PathBuf,
        /// Numbers, as `list` shows them; none: all
        numbers: Vec<u64>,
    },
    /// Give it up for good
    Discard {
        /// The folder that is mounted, or that of a spool
        folder: PathBuf,
        /// Numbers, as `list` shows them
        #[arg(required = true)]
        numbers: Vec<u64>,
    },
}

impl SpoolCommand {
    /// Run it.
    pub fn run(&self) -> Outcome {
        match &self.action {
            Action::List { folder, json } => list(&spool_of(folder)?, *json),
            Action::Retry { folder, numbers } => retry(&spool_of(folder)?, numbers),
            Action::Discard { folder, numbers } => discard(&spool_of(folder)?, numbers),
        }
    }
}

/// The spool of a mount, or the folder itself if it is one.
fn spool_of(folder: &Path) -> Outcome<PathBuf> {
    if let Some(status) = status::of_mount(folder) {
        let none = || Failure::new(Exit::Failure, format!("{}: a read-only mount has no spool", folder.display()));
        return status.spool_dir.map(PathBuf::from).ok_or_else(none);
    }
    match spool::is_spool(folder) {
        true => Ok(folder.to_owned()),
        false => Err(Failure::new(Exit::NotFound, format!("{}: neither a mount nor a spool", folder.display()))
            .hint("name the folder that is mounted; of a mount that is gone, `spool` in its cache")),
    }
}

fn notes(folder: &Path) -> Outcome<Vec<Note>> {
    spool::notes_in(folder).map_err(|error| Failure::io(folder.display(), &error))
}

fn list(folder: &Path, json: bool) -> Outcome {
    let failed = |error| Failure::io(folder.display(), &error);
    let notes = spool::unsaved_in(folder).map_err(failed)?;
    for what in spool::damage_in(folder, &notes).map_err(failed)? {
        warn(what);
    }
    let mut out = Out::new();
    if json {
        out.json(&notes)?;
        return out.finish();
    }
    let mut rows = vec![["NUMBER", "STATE", "SIZE", "PATH", "WHY"].map(str::to_owned).to_vec()];
    rows.extend(notes.iter().map(|note| {
        vec![
            note.number.to_string(),
            state_name(note.state).to_owned(),
            ByteCount(note.size).to_string(),
            escape(note.path.as_bytes()),
            note.error.clone().unwrap_or_default(),
        ]
    }));
    for line in columns(&rows, &[0, 2]) {
        out.line(line)?;
    }
    out.finish()
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Saving => "saving",
        State::Retrying => "retrying",
        State::Interrupted => "interrupted",
        State::Failed => "failed",
    }
}

fn retry(folder: &Path, numbers: &[u64]) -> Outcome {
    let problems = Problems::default();
    let all = notes(folder)?;
    for number in numbers.iter().filter(|number| !all.iter().any(|note| note.number == **number)) {
        problems.add(no_such(folder, *number));
    }
    let is_chosen = |note: &Note| numbers.is_empty() || numbers.contains(&note.number);
    let chosen: Vec<Note> = all.into_iter().filter(is_chosen).collect();
    // What the mount tries by itself is its own: two savers of one file would be in each other's way.
    for note in chosen.iter().filter(|note| note.state != State::Retrying) {
        let again = Note { state: State::Saving, error: None, ..note.clone() };
        again.write(folder).map_err(|error| Failure::io(folder.display(), &error))?;
    }
    for note in chosen {
        let Some(left) = wait_for(folder, note.number)? else {
            say(format!("{}: saved", escape(note.path.as_bytes())))?;
            continue;
        };
        let why = left.error.as_deref().unwrap_or("no mount takes it up");
        let failure = Failure::new(Exit::Failure, format!("{}: {why}", escape(left.path.as_bytes())));
        problems.add(match (spool::has_bytes(folder, left.number), &left.error) {
            (false, _) => failure.hint("its bytes are gone; `swarmfs spool discard` gives it up"),
            (true, Some(_)) => failure.hint("its bytes are still there; the log of the mount may say more"),
            (true, None) => failure.hint("its bytes are still there; a mount with this spool must run for a retry"),
        });
    }
    problems.conclude("files were not saved")
}

fn no_such(folder: &Path, number: u64) -> Failure {
    Failure::new(Exit::NotFound, format!("{number}: no such file in {}", folder.display()))
        .hint("`swarmfs spool list` shows those that there are")
}

/// What is left of a file once the mount has tried; none: nothing.
fn wait_for(folder: &Path, number: u64) -> Outcome<Option<Note>> {
    let began = Instant::now();
    loop {
        let note = notes(folder)?.into_iter().find(|note| note.number == number);
        let Some(note) = note else { return Ok(None) };
        match note.state {
            State::Saving => {}
            State::Retrying if began.elapsed() < BEGIN_PATIENCE => {}
            State::Retrying | State::Interrupted | State::Failed => return Ok(Some(note)),
        }
        if began.elapsed() > BEGIN_PATIENCE && !spool::is_used(folder) {
            return Ok(Some(note));
        }
        std::thread::sleep(POLL);
    }
}

fn discard(folder: &Path, numbers: &[u64]) -> Outcome {
    let (mut out, problems) = (Out::new(), Problems::default());
    for number in numbers {
        let discarded = discard_one(folder, *number);
        if let Some(what) = problems.note(discarded, &out)? {
            out.line(format!("{what}: discarded"))?;
        }
    }
    out.finish()?;
    problems.conclude("files were not discarded")
}

/// Returns what it was.
fn discard_one(folder: &Path, number: u64) -> Outcome<String> {
    let failed = |error| Failure::io(folder.display(), &error);
    let what = match notes(folder)?.into_iter().find(|note| note.number == number) {
        Some(note) if matches!(note.state, State::Saving | State::Retrying) && spool::is_used(folder) => {
            let path = escape(note.path.as_bytes());
            return Err(Failure::new(Exit::Failure, format!("{path}: the mount is saving it now"))
                .hint("wait until `swarmfs spool list` says `failed`, or stop the mount"));
        }
        Some(note) => escape(note.path.as_bytes()),
        None if spool::is_damaged(folder, number).map_err(failed)? => number.to_string(),
        None => return Err(no_such(folder, number)),
    };
    spool::remove(folder, number).map_err(failed)?;
    Ok(what)
}
