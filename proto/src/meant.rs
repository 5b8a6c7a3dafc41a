//! Which swarm a question is meant for: two swarms number their inodes alike, so an answer of the wrong one names
//! another file.
//!
//! It travels as the metadata `swarm-id` beside a request. A question without it is meant for whoever answers.

use std::sync::{Arc, OnceLock};

use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::{Fault, SwarmId, fault};

/// Metadata key under which the swarm travels, as 32 hex digits.
pub const SWARM_KEY: &str = "swarm-id";

/// Adds the swarm to every question, once it is known; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MeantFor {
    swarm: Arc<OnceLock<(SwarmId, AsciiMetadataValue)>>,
}

impl MeantFor {
    /// From now on questions are meant for `swarm` only, unless they are meant for another already; which one it is.
    pub fn bind(&self, swarm: SwarmId) -> SwarmId {
        let bound = || {
            let value = AsciiMetadataValue::try_from(swarm.to_string()).expect("hex digits are a valid value");
            (swarm, value)
        };
        self.swarm.get_or_init(bound).0
    }

    /// Whether it is known.
    pub fn is_bound(&self) -> bool {
        self.swarm.get().is_some()
    }
}

impl Interceptor for MeantFor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some((_, value)) = self.swarm.get() {
            request.metadata_mut().insert(SWARM_KEY, value.clone());
        }
        Ok(request)
    }
}

/// Whether a question may be answered by `ours`.
///
/// Errors: [`Fault::OtherSwarm`]: it is meant for another swarm, or for none that can be read.
pub fn check(ours: SwarmId, request: &Request<()>) -> Result<(), Status> {
    let Some(meant) = request.metadata().get(SWARM_KEY) else { return Ok(()) };
    match meant.to_str().ok().and_then(|text| text.parse::<SwarmId>().ok()) {
        Some(meant) if meant == ours => Ok(()),
        Some(meant) => {
            Err(fault::to_status(Fault::OtherSwarm, format!("this is swarm {ours}; the question is for swarm {meant}")))
        }
        None => Err(fault::to_status(Fault::OtherSwarm, format!("this is swarm {ours}; {SWARM_KEY} cannot be read"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_only_by_the_swarm_that_it_is_meant_for() {
        let (ours, other) = (SwarmId::random(), SwarmId::random());
        let mut meant = MeantFor::default();
        let ask = |meant: &mut MeantFor| meant.call(Request::new(())).unwrap();
        assert!(check(ours, &ask(&mut meant)).is_ok() && check(other, &ask(&mut meant)).is_ok());
        assert_eq!(meant.clone().bind(ours), ours);
        assert_eq!(meant.bind(other), ours, "bound once");
        assert!(check(ours, &ask(&mut meant)).is_ok());
        let refused = check(other, &ask(&mut meant)).unwrap_err();
        assert_eq!(fault::of_status(&refused), Fault::OtherSwarm);
        let mut odd = Request::new(());
        odd.metadata_mut().insert(SWARM_KEY, AsciiMetadataValue::from_static("no id"));
        assert_eq!(fault::of_status(&check(ours, &odd).unwrap_err()), Fault::OtherSwarm);
    }
}
