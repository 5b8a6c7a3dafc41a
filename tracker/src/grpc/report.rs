//! `Report`: a holder answered wrongly or not at all.

use swarm_proto::convert;
use swarm_proto::v1::{ReportKind, ReportReply, ReportRequest};
use tonic::Status;

use super::desk::Desk;
use crate::soft::Complaint;

const MOST_REPORTS: u64 = 256;

/// Take all reports of one call, or, if one of them cannot be read, none.
pub(super) fn report(desk: &Desk, request: &ReportRequest) -> Result<ReportReply, Status> {
    convert::within("reports", request.reports.len() as u64, 0, MOST_REPORTS)?;
    if !request.reporter_id.is_empty() {
        convert::peer_id("reporter_id", &request.reporter_id)?;
    }
    let mut complaints = Vec::with_capacity(request.reports.len());
    for report in &request.reports {
        let peer = convert::peer_id("reports.peer_id", &report.peer_id)?;
        let segment = || convert::segment_id("reports.segment_id", &report.segment_id);
        let complaint = match ReportKind::try_from(report.kind) {
            Ok(ReportKind::Missing) => Complaint::Missing(segment()?),
            Ok(ReportKind::Corrupt) => Complaint::Corrupt(segment()?),
            Ok(ReportKind::Unreachable) => Complaint::Unreachable,
            Ok(ReportKind::Unspecified) | Err(_) => {
                return Err(Status::invalid_argument(format!("reports.kind: {} is no kind of report", report.kind)));
            }
        };
        complaints.push((peer, complaint));
    }
    for (peer, complaint) in complaints {
        tracing::debug!(%peer, ?complaint, "holder reported");
        desk.soft.complain(&peer, complaint);
    }
    Ok(ReportReply {})
}
