//! A stream to one server that carries many small requests, so that none of them pays for a call of its own.
//!
//! It only makes things fast: what it does not answer is asked again by a call, and whoever is asked so must give the
//! first answer again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// Requests that may wait to be sent.
const QUEUE: usize = 64;
/// How long after a stream ended, or could not be opened, the next one is tried.
const PAUSE: Duration = Duration::from_secs(1);

/// What a stream carries.
pub(crate) trait Talk: 'static {
    /// What tells one request from another.
    type Key: Clone + Eq + Hash + Send;
    /// Sent.
    type Request: Send;
    /// What comes back.
    type Message: Send;
    /// What it says.
    type Answer: Send;
    /// To which request a message belongs, and what it answers.
    fn read(message: Self::Message) -> (Self::Key, Self::Answer);
}

/// The stream to one server, opened when it is first wanted and again when it has ended.
pub(crate) struct Session<T: Talk> {
    state: Mutex<State<T>>,
}

struct State<T: Talk> {
    open: Option<Arc<Open<T>>>,
    tried: Option<Instant>,
}

struct Open<T: Talk> {
    /// The stream ends when this is dropped.
    requests: mpsc::Sender<T::Request>,
    waiting: Arc<Waiting<T>>,
}

/// Who waits for which answer. None once the stream has ended.
type Waiting<T> = Mutex<Option<HashMap<<T as Talk>::Key, oneshot::Sender<<T as Talk>::Answer>>>>;

impl<T: Talk> Default for Session<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State { open: None, tried: None }) }
    }
}

impl<T: Talk> Session<T> {
    /// Send a request over the stream; None: there is none now, and it was not sent. If there is none, one is opened
    /// for whoever comes later.
    ///
    /// Errors: the stream ended without an answer.
    pub(crate) async fn ask<F>(
        &self,
        key: T::Key,
        request: impl FnOnce() -> T::Request,
        open: impl FnOnce(ReceiverStream<T::Request>) -> F,
    ) -> Option<Result<T::Answer, Status>>
    where
        F: Future<Output = Result<Response<Streaming<T::Message>>, Status>> + Send + 'static,
    {
        let stream = self.current(open)?;
        let answer = stream.expect(&key)?;
        // Forgotten also if the caller has no more patience.
        let _expected = Expected { stream: &stream, key };
        stream.requests.send(request()).await.ok()?;
        Some(answer.await.map_err(|_| Status::unavailable("the stream ended")))
    }

    fn current<F>(&self, open: impl FnOnce(ReceiverStream<T::Request>) -> F) -> Option<Arc<Open<T>>>
    where
        F: Future<Output = Result<Response<Streaming<T::Message>>, Status>> + Send + 'static,
    {
        let mut state = self.state.lock();
        if let Some(stream) = &state.open {
            if stream.waiting.lock().is_some() {
                return Some(stream.clone());
            }
            state.open = None;
        }
        if state.tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
            return None;
        }
        state.tried = Some(Instant::now());
        let (requests, queue) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        state.open = Some(Arc::new(Open { requests, waiting: waiting.clone() }));
        #[allow(clippy::disallowed_methods, reason = "it ends with the session, which nobody has to wait for")]
        tokio::spawn(run::<T>(open(ReceiverStream::new(queue)), waiting));
        None
    }
}

impl<T: Talk> Open<T> {
    /// None: the stream has ended, or this request is on its way already.
    fn expect(&self, key: &T::Key) -> Option<oneshot::Receiver<T::Answer>> {
        let mut waiting = self.waiting.lock();
        let waiting = waiting.as_mut()?;
        if waiting.contains_key(key) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        waiting.insert(key.clone(), sender);
        Some(receiver)
    }
}

/// Takes a request off the list when nobody waits for it any more.
struct Expected<'a, T: Talk> {
    stream: &'a Open<T>,
    key: T::Key,
}

impl<T: Talk> Drop for Expected<'_, T> {
    fn drop(&mut self) {
        if let Some(waiting) = self.stream.waiting.lock().as_mut() {
            waiting.remove(&self.key);
        }
    }
}

/// Give answers to those that wait, until the stream ends. Whoever waits then is told by the drop of its sender.
async fn run<T: Talk>(
    opening: impl Future<Output = Result<Response<Streaming<T::Message>>, Status>>,
    waiting: Arc<Waiting<T>>,
) {
    let why = match opening.await {
        Err(status) => status,
        Ok(messages) => {
            let mut messages = messages.into_inner();
            loop {
                match messages.message().await {
                    Ok(Some(message)) => {
                        let (key, answer) = T::read(message);
                        let waiter = waiting.lock().as_mut().and_then(|waiting| waiting.remove(&key));
                        // An error says that the waiter has gone.
                        let _ = waiter.map(|waiter| waiter.send(answer));
                    }
                    Ok(None) => break Status::ok("ended"),
                    Err(status) => break status,
                }
            }
        }
    };
    *waiting.lock() = None;
    tracing::debug!(%why, "a stream of requests ended; they are sent as calls until there is another");
}
