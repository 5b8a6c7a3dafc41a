//! One way to answer a stream of small requests: each for itself, whether or not anybody reads the answers.
//!
//! They run in a task of the stream, not in the body of its response: the transport asks a body for more only while the
//! other side takes it, and what runs in there stands still until then, with all that it holds.
//!
//! Invariant: no more than `at_once` requests of a stream are being answered or have answers that were not taken; the
//! next is read when one of these was taken. So a stream whose answers nobody reads falls silent, and ends.

use std::pin::pin;
use std::time::Duration;

use futures::stream::{FuturesUnordered, Stream, StreamExt, poll_fn};
use tokio::sync::mpsc::{OwnedPermit, Receiver, Sender, channel};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

/// How a stream is answered.
#[derive(Debug, Clone)]
pub struct Answering {
    /// Requests that are being answered, or whose answers were not taken; more wait on the wire.
    pub at_once: usize,
    /// Longest time without a whole request: the stream ends then.
    pub silence: Duration,
    /// Nothing is read any more from then on; what was read is answered.
    pub stop: CancellationToken,
    /// Where the task runs; it ends with the stream.
    pub tasks: TaskTracker,
}

impl Answering {
    /// What `answer` says to each request, as it is ready. Ends with the requests, with an error if they end with one;
    /// an error of `answer` ends it, too. `seat` is kept as long as anything runs.
    pub fn start<Q, A, F>(
        self,
        requests: impl Stream<Item = Result<Q, Status>> + Send + 'static,
        seat: impl Send + 'static,
        answer: impl Fn(Q) -> F + Send + 'static,
    ) -> impl Stream<Item = Result<A, Status>> + Send
    where
        Q: Send + 'static,
        A: Send + 'static,
        F: Future<Output = Result<A, Status>> + Send + 'static,
    {
        // One more for the error that ends it.
        let (answers, mut ready): (_, Receiver<Result<A, Status>>) = channel(self.at_once + 1);
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            self.run(requests, answers, answer).await;
            drop(seat);
        });
        poll_fn(move |context| ready.poll_recv(context))
    }

    async fn run<Q, A, F>(
        self,
        requests: impl Stream<Item = Result<Q, Status>>,
        answers: Sender<Result<A, Status>>,
        answer: impl Fn(Q) -> F,
    ) where
        F: Future<Output = Result<A, Status>>,
    {
        let Ok(end) = answers.clone().try_reserve_owned() else { return };
        let mut requests = Box::pin(requests);
        let mut running = FuturesUnordered::new();
        let (mut gone, mut stop) = (pin!(answers.closed()), pin!(self.stop.cancelled()));
        let (mut silent, mut newest) = (pin!(sleep(self.silence)), Instant::now());
        let mut place = None;
        let mut why = loop {
            tokio::select! {
                biased;
                Some(failed) = running.next() => {
                    if let Some(status) = failed {
                        break Some(status);
                    }
                }
                () = &mut stop => break None,
                come = next(&answers, &mut place, &mut requests) => match come {
                    None => break None,
                    Some((_, Err(status))) => break Some(status),
                    Some((place, Ok(request))) => {
                        newest = Instant::now();
                        let answered = answer(request);
                        running.push(async move { answered.await.map(|answer| place.send(Ok(answer))).err() });
                    }
                },
                () = &mut gone => return,
                // Set again only when it is over, not with each request.
                () = &mut silent => match newest.elapsed() < self.silence {
                    true => silent.as_mut().reset(newest + self.silence),
                    false => break None,
                },
            }
        };
        // A request that is half here goes now.
        drop(requests);
        loop {
            tokio::select! {
                answered = running.next() => match answered {
                    None => break,
                    Some(failed) => why = why.or(failed),
                },
                () = &mut gone => return,
            }
        }
        if let Some(status) = why {
            end.send(Err(status));
        }
    }
}

/// A place for an answer, then the next request. Nothing is lost if it is not waited for to the end.
async fn next<T, Q>(
    answers: &Sender<T>,
    place: &mut Option<OwnedPermit<T>>,
    requests: &mut (impl Stream<Item = Q> + Unpin),
) -> Option<(OwnedPermit<T>, Q)> {
    if place.is_none() {
        *place = Some(answers.clone().reserve_owned().await.ok()?);
    }
    let request = requests.next().await?;
    Some((place.take()?, request))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream::BoxStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    const AT_ONCE: usize = 4;
    const SILENCE: Duration = Duration::from_secs(60);

    /// A stream, and what it does.
    struct Running {
        requests: UnboundedSender<Result<u32, Status>>,
        answers: BoxStream<'static, Result<u32, Status>>,
        begun: Arc<AtomicUsize>,
        done: Arc<AtomicUsize>,
        stop: CancellationToken,
        tasks: TaskTracker,
    }

    /// Each request is answered with its double, 0 with an error, each after a second.
    fn start() -> Running {
        let (requests, mut come) = unbounded_channel();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.close();
        let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (begun.clone(), done.clone());
        let answering = Answering { at_once: AT_ONCE, silence: SILENCE, stop: stop.clone(), tasks: tasks.clone() };
        let answers = answering.start(poll_fn(move |context| come.poll_recv(context)), (), move |request: u32| {
            let (begun, done) = counts.clone();
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_secs(1)).await;
                done.fetch_add(1, Ordering::SeqCst);
                if request == 0 { Err(Status::aborted("nothing")) } else { Ok(2 * request) }
            }
        });
        Running { requests, answers: answers.boxed(), begun, done, stop, tasks }
    }

    impl Running {
        fn ask(&self, numbers: impl IntoIterator<Item = u32>) {
            numbers.into_iter().for_each(|number| self.requests.send(Ok(number)).unwrap());
        }

        fn counts(&self) -> (usize, usize) {
            (self.begun.load(Ordering::SeqCst), self.done.load(Ordering::SeqCst))
        }

        async fn ends_within(&self, limit: Duration) -> bool {
            tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_answered_though_nobody_reads_and_no_more_than_there_are_places() {
        let mut running = start();
        running.ask(1..=10);
        sleep(Duration::from_secs(30)).await;
        assert_eq!(running.counts(), (AT_ONCE, AT_ONCE));
        let mut said: Vec<u32> = running.answers.by_ref().take(10).map(Result::unwrap).collect().await;
        said.sort_unstable();
        assert_eq!(said, (1..=10).map(|number| 2 * number).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_not_read_ends_like_one_on_which_nothing_comes() {
        let unread = start();
        unread.ask(1..=10);
        assert!(!unread.ends_within(SILENCE - Duration::from_secs(2)).await);
        assert!(unread.ends_within(Duration::from_secs(4)).await);
        assert!(unread.requests.is_closed());
        assert_eq!(unread.answers.count().await, AT_ONCE, "what was answered can still be read");
        let mut idle = start();
        sleep(SILENCE - Duration::from_secs(5)).await;
        idle.ask([1]);
        assert_eq!(idle.answers.next().await.unwrap().unwrap(), 2);
        assert!(!idle.ends_within(SILENCE - Duration::from_secs(5)).await, "it counts from the newest request");
        assert!(idle.ends_within(Duration::from_secs(10)).await);
        assert!(idle.answers.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_is_answered_after_stop_whether_or_not_anybody_reads() {
        let running = start();
        running.ask(1..=10);
        sleep(Duration::from_millis(500)).await;
        running.stop.cancel();
        assert!(running.ends_within(Duration::from_secs(2)).await);
        assert_eq!(running.counts(), (AT_ONCE, AT_ONCE));
        assert_eq!(running.answers.count().await, AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_ends_the_stream_after_the_answers_to_what_came_before() {
        for refused_by_answer in [true, false] {
            let running = start();
            running.ask(1..=3);
            match refused_by_answer {
                true => running.ask([0]),
                false => running.requests.send(Err(Status::aborted("broken"))).unwrap(),
            }
            let said: Vec<_> = running.answers.collect().await;
            assert_eq!(said.iter().filter(|answer| answer.is_ok()).count(), 3);
            assert!(said.len() == 4 && said[3].is_err(), "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_gone_ends_the_stream() {
        let mut running = start();
        running.ask(1..=3);
        running.answers = futures::stream::empty().boxed();
        assert!(running.ends_within(Duration::from_millis(100)).await);
    }
}
