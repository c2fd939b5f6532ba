//! What the control socket takes, and the words that a user gives.

use p2pfs::{
    content::ContentId,
    control::types::{LeaveRequest, UnmountRequest},
    node::address,
};

use crate::{run_chosen, seed};

pub(crate) fn run(data: &[u8]) {
    run_chosen(
        data,
        &[
            |bytes| _ = serde_json::from_slice::<UnmountRequest>(bytes),
            |bytes| _ = serde_json::from_slice::<LeaveRequest>(bytes),
            words,
        ],
    );
}

fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(content) = text.parse::<ContentId>() {
        assert_eq!(content.to_string(), text.to_ascii_lowercase());
    }
    let _ = address::tracker(text);
    let _ = address::peer(text);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let unmount = serde_json::to_vec(&UnmountRequest::default()).unwrap_or_default();
    let leave = serde_json::to_vec(&LeaveRequest::default()).unwrap_or_default();
    vec![
        seed(0, &unmount),
        seed(1, &leave),
        seed(2, "0f".repeat(32).as_bytes()),
        seed(2, b"tracker.example.org:7474"),
        seed(2, b"/ip4/192.0.2.1/tcp/7474"),
    ]
}
