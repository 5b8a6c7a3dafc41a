//! How far a copy is: a bar on a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);

/// A bar on standard error, if that is a terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar that counts bytes, of a total if it is known.
    pub(crate) fn bytes(total: Option<u64>, quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
        let template = match total {
            Some(_) => "{bar:24} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}",
            None => "{spinner} {bytes}  {binary_bytes_per_sec}  {msg}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(total, target).with_style(style);
        Self { bar }
    }

    /// Keep the bar at what `position` says, while `work` runs.
    pub(crate) async fn follow<T>(&self, work: impl Future<Output = T>, position: impl Fn() -> (u64, String)) -> T {
        tokio::pin!(work);
        let show = || {
            let (bytes, message) = position();
            self.bar.set_position(bytes);
            self.bar.set_message(message);
        };
        if self.bar.is_hidden() {
            return work.await;
        }
        loop {
            tokio::select! {
                done = &mut work => {
                    self.bar.finish_and_clear();
                    return done;
                }
                () = tokio::time::sleep(TICK) => show(),
            }
        }
    }
}
