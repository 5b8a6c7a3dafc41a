//! Output: JSON or text, escaped for terminals, and quiet when the reader has gone.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};

use serde::Serialize;

use super::exit::{Failure, Outcome};
use super::name::escape;

/// Standard output. A reader that went away (`| head`) ends the output, not in an error.
pub(crate) struct Out {
    to: BufWriter<io::Stdout>,
    terminal: bool,
    gone: bool,
    broken: bool,
}

/// One line to standard output, of what was done.
pub(crate) fn say(text: impl AsRef<[u8]>) -> Outcome {
    let mut out = Out::new();
    out.line(text)?;
    out.finish()
}

/// One line to standard error. The exit code says it as well, to whoever does not hear this.
pub(crate) fn warn(text: impl Display) {
    drop(writeln!(io::stderr(), "swarmfs: {text}"));
}

impl Out {
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { to: BufWriter::with_capacity(1 << 16, stdout), terminal, gone: false, broken: false }
    }

    /// Bytes as they are. Errors: other than that the reader has gone.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Outcome {
        if self.gone {
            return Ok(());
        }
        let written = self.to.write_all(bytes);
        self.check(written)
    }

    /// Text and a newline.
    pub(crate) fn line(&mut self, text: impl AsRef<[u8]>) -> Outcome {
        self.bytes(text.as_ref())?;
        self.bytes(b"\n")
    }

    /// A name: escaped on a terminal, as it is elsewhere.
    pub(crate) fn name(&self, name: &[u8]) -> Vec<u8> {
        match self.terminal {
            true => escape(name).into_bytes(),
            false => name.to_vec(),
        }
    }

    /// One JSON value, over several lines.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Outcome {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::new(super::exit::Exit::Failure, format!("write JSON: {error}")))?;
        self.line(text)
    }

    /// Whether the reader has gone: what follows is for nobody.
    pub(crate) fn gone(&self) -> bool {
        self.gone
    }

    /// Whether nothing more can come of what a command would show: its output has ended, or nobody answers it.
    pub(crate) fn is_in_vain(&self, failure: &Failure) -> bool {
        self.gone || self.broken || failure.exit == super::exit::Exit::Unreachable
    }

    /// Write out what is buffered.
    pub(crate) fn finish(&mut self) -> Outcome {
        if self.gone {
            return Ok(());
        }
        let flushed = self.to.flush();
        self.check(flushed)
    }

    fn check(&mut self, written: io::Result<()>) -> Outcome {
        match written {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(())
            }
            Err(error) => {
                self.broken = true;
                Err(Failure::io("write to standard output", &error))
            }
        }
    }
}

/// Rows in columns as wide as their widest cell; `right` marks the columns of numbers.
pub(crate) fn columns(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |index: usize| rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|index| width(index).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(index, cell)| match right.contains(&index) {
            true => format!("{cell:>width$}", width = widths[index]),
            false => format!("{cell:<width$}", width = widths[index]),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".to_owned(), "10".to_owned(), "x".to_owned()], vec!["bbb".to_owned(), "5".to_owned()]];
        assert_eq!(columns(&rows, &[1]), ["a    10  x", "bbb   5"]);
    }
}
