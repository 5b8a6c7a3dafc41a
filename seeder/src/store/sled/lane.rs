//! A thread that takes work in groups: whatever waits when it is free is done together.
//!
//! Not a pool: one lane is one thread, so that what must not overlap does not. Invariant: work that was
//! sent before [`LaneSender::stop`] is done; a reply that nobody sends tells its waiter that the lane
//! has ended.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most messages of one group.
const MOST: usize = 4096;

enum Message<M> {
    Work(M),
    Stop,
}

/// Sends work to a lane.
pub(super) struct LaneSender<M>(Sender<Message<M>>);

/// The lane's end, until it is started.
pub(super) struct LaneEnd<M>(Receiver<Message<M>>);

/// A lane that is not started yet.
pub(super) fn lane<M>() -> (LaneSender<M>, LaneEnd<M>) {
    let (sender, receiver) = channel();
    (LaneSender(sender), LaneEnd(receiver))
}

impl<M> LaneSender<M> {
    /// Give it work; returns it if the lane has ended.
    pub(super) fn send(&self, work: M) -> Result<(), M> {
        self.0.send(Message::Work(work)).map_err(|unsent| match unsent.0 {
            Message::Work(work) => work,
            Message::Stop => unreachable!("what was sent is work"),
        })
    }

    /// End it after the work sent so far.
    pub(super) fn stop(&self) {
        // An error says that it has ended already.
        let _ = self.0.send(Message::Stop);
    }
}

impl<M: Send + 'static> LaneEnd<M> {
    /// Start the thread. `work` gets each group, and an empty one after every `tick` without work.
    pub(super) fn start(
        self,
        name: &str,
        tick: Option<Duration>,
        mut work: impl FnMut(Vec<M>) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut running = true;
            while running {
                let first = match tick {
                    None => self.0.recv().unwrap_or(Message::Stop),
                    Some(tick) => match self.0.recv_timeout(tick) {
                        Ok(message) => message,
                        Err(RecvTimeoutError::Timeout) => {
                            work(Vec::new());
                            continue;
                        }
                        Err(RecvTimeoutError::Disconnected) => Message::Stop,
                    },
                };
                let waiting = std::iter::once(first).chain(self.0.try_iter()).take(MOST);
                let mut group = Vec::new();
                for message in waiting {
                    match message {
                        Message::Work(message) => group.push(message),
                        Message::Stop => {
                            running = false;
                            break;
                        }
                    }
                }
                if !group.is_empty() {
                    work(group);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn what_waits_is_done_together_and_all_of_it_before_the_end() {
        let (sender, end) = lane();
        (0..10).for_each(|i| sender.send(i).unwrap());
        sender.stop();
        let groups = Arc::new(Mutex::new(Vec::new()));
        let seen = groups.clone();
        end.start("test", None, move |group: Vec<i32>| seen.lock().unwrap().push(group)).unwrap().join().unwrap();
        assert_eq!(*groups.lock().unwrap(), [(0..10).collect::<Vec<_>>()]);
        assert_eq!(sender.send(11), Err(11));
    }
}
