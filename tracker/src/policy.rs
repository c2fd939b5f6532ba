//! When a peer connects to a tracker, announces, renews and polls. Pure: the node executes what it says.
//!
//! One policy for each tracker. The node tells what happened (`handle_*`) and takes what to do from
//! [`TrackerPolicy::poll_action`] until that is empty, again at [`TrackerPolicy::poll_timeout`]. Each kind of action is given
//! out once and not again before its outcome was told; [`TrackerPolicy::handle_disconnected`] is the outcome of all of them.
//!
//! Invariants: nothing is sent without a connection; what is held is told only under a lease; a tracker that can't be reached,
//! or doesn't take announcements, is tried with growing pauses and never given up.

/// First pause after a failure, in milliseconds.
pub const BACKOFF_FIRST_MS: u64 = 500;
/// Longest pause after failures, in milliseconds.
pub const BACKOFF_MAX_MS: u64 = 30_000;
/// Longest time between two renewals; a shorter lease is renewed after a third of it.
pub const RENEW_MS: u64 = 30_000;
/// And not sooner than this, whatever lease the tracker says.
const RENEW_MIN_MS: u64 = 200;
/// Time between two polls for heads.
pub const POLL_HEADS_MS: u64 = 30_000;
/// Changes of what is held are gathered for so long: a running download verifies hundreds of contents a second.
pub const HOLDS_GATHER_MS: u64 = 1_000;

/// What the node is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Connect and begin a session; then [`TrackerPolicy::handle_connected`].
    Connect,
    /// Announce the current addresses; then [`TrackerPolicy::handle_announced`].
    Announce,
    /// Renew the lease; then [`TrackerPolicy::handle_renewed`].
    Renew,
    /// Tell anew all that is held; then [`TrackerPolicy::handle_holds_told`].
    ReplaceHolds,
    /// Tell what changed since holdings were last told; then [`TrackerPolicy::handle_holds_told`].
    UpdateHolds,
    /// Ask for the newest heads; then [`TrackerPolicy::handle_heads_polled`].
    PollHeads,
}

impl Action {
    /// Whether it tells the tracker what is held.
    pub fn is_of_holds(self) -> bool {
        matches!(self, Self::ReplaceHolds | Self::UpdateHolds)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// Connect at this time.
    Down {
        retry_ms: u64,
    },
    Connecting,
    Up(Up),
}

/// A session's timers: `None` where nothing is due, or the action was given out and its outcome isn't there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Up {
    announce: Option<u64>,
    announced: bool,
    renew: Option<u64>,
    holds: Option<(u64, Action)>,
    holds_running: bool,
    heads: Option<u64>,
}

/// The policy for one tracker. Times are milliseconds of any clock that doesn't run backwards.
#[derive(Clone, Debug)]
pub struct TrackerPolicy {
    link: Link,
    failures: u32,
}

impl TrackerPolicy {
    /// Connects at once.
    pub fn new(now: u64) -> Self {
        Self {
            link: Link::Down { retry_ms: now },
            failures: 0,
        }
    }

    /// Whether the tracker lists this peer, as far as is known here.
    pub fn is_registered(&self) -> bool {
        matches!(
            self.link,
            Link::Up(Up {
                announced: true,
                ..
            })
        )
    }

    /// A session has begun.
    pub fn handle_connected(&mut self, now: u64) {
        self.link = Link::Up(Up {
            announce: Some(now),
            announced: false,
            renew: None,
            holds: None,
            holds_running: false,
            heads: Some(now),
        });
    }

    /// Connecting failed, the session ended, or the tracker refused something other than for a forgotten lease (the node
    /// drops the session). `random` spreads the peers that lost the same tracker.
    pub fn handle_disconnected(&mut self, now: u64, random: u64) {
        let doubled = BACKOFF_FIRST_MS.saturating_mul(1 << self.failures.min(16));
        let pause = doubled.min(BACKOFF_MAX_MS);
        self.failures = self.failures.saturating_add(1);
        let jittered = pause / 2 + random % (pause / 2 + 1);
        self.link = Link::Down {
            retry_ms: now.saturating_add(jittered),
        };
    }

    /// The tracker listed this peer. `holds_match` tells whether what the tracker has of this peer's contents is what this
    /// peer last told (the digests are equal).
    pub fn handle_announced(&mut self, now: u64, lease_ms: u64, holds_match: bool) {
        self.failures = 0;
        self.leased(now, lease_ms, holds_match);
    }

    /// The lease was renewed; arguments as in [`TrackerPolicy::handle_announced`].
    pub fn handle_renewed(&mut self, now: u64, lease_ms: u64, holds_match: bool) {
        self.leased(now, lease_ms, holds_match);
    }

    fn leased(&mut self, now: u64, lease_ms: u64, holds_match: bool) {
        if let Link::Up(up) = &mut self.link {
            up.announced = true;
            up.renew = Some(now.saturating_add((lease_ms / 3).clamp(RENEW_MIN_MS, RENEW_MS)));
            // While holdings are being told, the tracker's digest is bound to differ.
            if !holds_match && !up.holds_running && up.holds.is_none() {
                up.holds = Some((now, Action::ReplaceHolds));
            }
        }
    }

    /// The tracker answered that it doesn't know this peer: everything is told again.
    pub fn handle_forgotten(&mut self, now: u64) {
        if let Link::Up(up) = &mut self.link {
            up.announce = Some(now);
            up.announced = false;
            up.renew = None;
            up.holds = None;
            up.holds_running = false;
        }
    }

    /// Holdings were told.
    pub fn handle_holds_told(&mut self) {
        if let Link::Up(up) = &mut self.link {
            up.holds_running = false;
        }
    }

    /// Heads were asked for.
    pub fn handle_heads_polled(&mut self, now: u64) {
        if let Link::Up(up) = &mut self.link {
            up.heads = Some(now.saturating_add(POLL_HEADS_MS));
        }
    }

    /// What this peer holds has changed.
    pub fn handle_holds_changed(&mut self, now: u64) {
        if let Link::Up(up) = &mut self.link
            && up.announced
            && up.holds.is_none()
        {
            up.holds = Some((now.saturating_add(HOLDS_GATHER_MS), Action::UpdateHolds));
        }
    }

    /// This peer's addresses have changed, or the machine woke up: announced at once where there is a session, and
    /// where there is none, connecting doesn't wait any longer.
    pub fn handle_addresses_changed(&mut self, now: u64) {
        match &mut self.link {
            Link::Down { retry_ms } => *retry_ms = now,
            Link::Connecting => {}
            Link::Up(up) => up.announce = Some(now),
        }
    }

    /// What to do now; call until it is `None`.
    pub fn poll_action(&mut self, now: u64) -> Option<Action> {
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now);
        match &mut self.link {
            Link::Down { retry_ms } if *retry_ms <= now => {
                self.link = Link::Connecting;
                Some(Action::Connect)
            }
            Link::Down { .. } | Link::Connecting => None,
            Link::Up(up) => {
                if due(up.announce) {
                    up.announce = None;
                    up.renew = None;
                    return Some(Action::Announce);
                }
                if due(up.renew) {
                    up.renew = None;
                    return Some(Action::Renew);
                }
                if let Some((at, action)) = up.holds
                    && at <= now
                    && !up.holds_running
                {
                    up.holds = None;
                    up.holds_running = true;
                    return Some(action);
                }
                if due(up.heads) {
                    up.heads = None;
                    return Some(Action::PollHeads);
                }
                None
            }
        }
    }

    /// When [`TrackerPolicy::poll_action`] next has something, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<u64> {
        match self.link {
            Link::Down { retry_ms } => Some(retry_ms),
            Link::Connecting => None,
            Link::Up(up) => {
                let holds = up.holds.filter(|_| !up.holds_running).map(|(at, _)| at);
                let timers = [up.announce, up.renew, holds, up.heads];
                timers.into_iter().flatten().min()
            }
        }
    }
}

#[cfg(test)]
mod tests;
