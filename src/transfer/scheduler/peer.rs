//! What is known of one connected peer: how fast it answers, and how much it may be asked for at a time.
//!
//! Estimates follow TCP's: a smoothed round trip and its deviation, a smoothed delivery rate. Two different guesses
//! stand in for an unmeasured rate: an optimistic one for choosing and hedging, a pessimistic one for giving up, so that
//! a slow link gets its first answer through and a dead peer holds nobody up.

use std::time::Duration;

use libp2p::PeerId;

use super::crowd::key_of;
use crate::content::BLOCK_BYTES;

/// Round trip of a peer that hasn't been measured yet.
const RTT_UNMEASURED: Duration = Duration::from_millis(100);
/// Rate assumed when choosing among peers: unknown ones are worth a try.
const RATE_OPTIMISTIC: u64 = 8 * 1024 * 1024;
/// Rate assumed when deciding that no answer will come: about 1 Mbit/s.
const RATE_PESSIMISTIC: u64 = 128 * 1024;
/// Rates below this are not believed; a block then takes 4 s.
const RATE_MIN: u64 = 16 * 1024;
/// What each block answer that a peer is working on for others adds to its expected completion time.
const LOAD_COST: Duration = Duration::from_millis(10);
/// What each failure in a row adds to it.
const FAILURE_COST: Duration = Duration::from_secs(1);
/// What each batch in a row of which a peer had nothing adds to its expected completion time for another one.
const LACKING_COST: Duration = Duration::from_millis(100);
/// Queue kept at a peer beyond bandwidth × delay, in time: covers jitter of both ends without adding much latency.
const QUEUE_SLACK: Duration = Duration::from_millis(250);
/// The same where several members share an object: what is asked for later may be had from more of them, and what waits in the
/// queue of a busy one holds up everybody who wants it next.
const QUEUE_SLACK_SHARED: Duration = Duration::from_millis(100);
/// That much may be queued all the same at a peer that sends it within [`QUEUE_SLACK`]: a unit of a shared object.
const QUEUE_BYTES_SHARED: u64 = 128 * 1024;
/// Bounds of the window: one block, and what 1 GiB/s moves in 31 ms.
const WINDOW_BYTES: (u64, u64) = (BLOCK_BYTES, 32 * 1024 * 1024);
/// Window of an unmeasured peer.
const WINDOW_BYTES_UNMEASURED: u64 = 1024 * 1024;
/// Blocks in one request to an unmeasured peer.
const REQUEST_BLOCKS_UNMEASURED: u64 = 4;
/// A single request is kept small enough to be answered within about this.
const REQUEST_TIME: Duration = Duration::from_secs(1);
/// Bounds of the time-out.
const TIME_OUT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// Bytes that count as a sign of life. Who sends less in the time-out is as good as silent.
const HEARD_BYTES: u64 = 4 * 1024;
/// What comes is measured over at least this long.
const METER: Duration = Duration::from_millis(400);
/// A request is passed over by a peer that has sent twice what was asked for before it, and this.
const PASSED_OVER_BYTES: u64 = 4 * 1024 * 1024;
/// More is not left queued at a peer, in time.
const QUEUE_MAX: Duration = Duration::from_secs(3);
/// Least time before a request counts as late.
const LATE_MIN: Duration = Duration::from_millis(300);
/// Pause after a failure; doubles with each failure in a row.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// Pause after "busy"; doubles with each in a row, up to [`BUSY_PAUSE_MAX`].
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause of a busy peer.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Failures in a row after which a peer is dropped: a request and two more tries.
const FAILURES_MAX: u32 = 3;
/// How long a dropped peer that stays connected is left alone. Then it has one try; the next failure drops it again.
const DROP_PAUSE: Duration = Duration::from_secs(30);

/// A moment of sending, for measuring by it later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// When.
    pub(super) at: Duration,
    /// Bytes that the peer had delivered by then.
    delivered_bytes: u64,
    /// Bytes that had come from it by then, parts of answers included.
    heard_bytes: u64,
    /// Bytes that were asked for by then, these included.
    queued_bytes: u64,
    /// Nothing else was queued.
    alone: bool,
    /// When the answer was expected.
    expected: Duration,
}

/// One connected peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    key: u64,
    rtt: Option<Duration>,
    /// The least of late: what it would be without queues on the way.
    rtt_least: Option<Duration>,
    deviation: Duration,
    rate_bytes_per_s: Option<u64>,
    load: u32,
    /// When its load was last asked for.
    pub(super) load_asked_at: Option<Duration>,
    /// Bytes asked for and not answered.
    pub(super) queued_bytes: u64,
    delivered_bytes: u64,
    /// Bytes that came from it, parts of answers included.
    heard_bytes: u64,
    /// What its connection has counted.
    counted_bytes: u64,
    /// When bytes came last, enough of them to count.
    heard_at: Option<Duration>,
    /// Bytes that came since.
    unheard_bytes: u64,
    /// The moment and [`Peer::heard_bytes`] at which the running measurement began.
    metered: Option<(Duration, u64)>,
    failures: u32,
    failed_at: Option<Duration>,
    busy: u32,
    /// Batches in a row of which it had nothing.
    lacking: u32,
    /// Not to be asked for blocks before this.
    pub(super) paused_until: Duration,
    dropped: bool,
}

impl Peer {
    /// One of whom nothing is known yet.
    pub(super) fn new(id: &PeerId) -> Self {
        Self {
            key: key_of(id),
            ..Self::default()
        }
    }

    /// Its number among those who share the work.
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    /// Expected time until `bytes` more would be here.
    pub(super) fn expected(&self, bytes: u64) -> Duration {
        let rate = self.rate_bytes_per_s.unwrap_or(RATE_OPTIMISTIC);
        self.rtt.unwrap_or(RTT_UNMEASURED)
            + time_for(self.queued_bytes.saturating_add(bytes), rate)
            + LOAD_COST * self.load.min(1000)
            + FAILURE_COST * self.failures
    }

    /// How long it sends `bytes`.
    pub(super) fn transfer_time(&self, bytes: u64) -> Duration {
        time_for(bytes, self.rate_bytes_per_s.unwrap_or(RATE_OPTIMISTIC))
    }

    /// The same as [`Peer::expected`] where nobody knows whether it has them: one that lacked all of the last such comes later.
    pub(super) fn expected_unasked(&self, bytes: u64) -> Duration {
        self.expected(bytes) + LACKING_COST * self.lacking.min(100)
    }

    /// It had something of a batch, or nothing.
    pub(super) fn on_unasked(&mut self, is_any: bool) {
        self.lacking = if is_any { 0 } else { self.lacking + 1 };
    }

    /// How many bytes may be queued at the peer: bandwidth × delay and some slack, less for an object that several members share.
    pub(super) fn window_bytes(&self, is_shared: bool) -> u64 {
        let Some(rate) = self.rate_bytes_per_s else {
            return WINDOW_BYTES_UNMEASURED;
        };
        let delay = self.rtt_least.unwrap_or(RTT_UNMEASURED) * 2;
        let alone = bytes_in(delay + QUEUE_SLACK, rate);
        let bytes = match is_shared {
            true => bytes_in(delay + QUEUE_SLACK_SHARED, rate).max(alone.min(QUEUE_BYTES_SHARED)),
            false => alone,
        };
        bytes.clamp(WINDOW_BYTES.0, WINDOW_BYTES.1)
    }

    /// Whether `bytes` more fit its window, `scale` times its size; an idle peer always has room for one request.
    pub(super) fn has_room(&self, bytes: u64, scale: u64, is_shared: bool) -> bool {
        let window_bytes = self.window_bytes(is_shared);
        self.queued_bytes == 0 || self.queued_bytes + bytes <= window_bytes * scale
    }

    /// Most blocks of one request.
    pub(super) fn request_blocks(&self, max: u64) -> u64 {
        match self.rate_bytes_per_s {
            None => REQUEST_BLOCKS_UNMEASURED.min(max),
            Some(rate) => (bytes_in(REQUEST_TIME, rate) / BLOCK_BYTES).clamp(1, max),
        }
    }

    /// How long to wait for the answer that completes what is queued now, before giving the request up.
    pub(super) fn time_out(&self) -> Duration {
        let rate = self.rate_bytes_per_s.unwrap_or(RATE_PESSIMISTIC);
        (self.round_trip_at_worst() + time_for(self.queued_bytes, rate) * 2)
            .clamp(TIME_OUT.0, TIME_OUT.1)
    }

    /// After which time the answer that completes what is queued now is late enough to ask somebody else as well.
    pub(super) fn late_after(&self) -> Duration {
        let rate = self.rate_bytes_per_s.unwrap_or(RATE_OPTIMISTIC);
        (self.round_trip_at_worst() + time_for(self.queued_bytes, rate) * 3 / 2)
            .clamp(LATE_MIN, self.time_out().max(LATE_MIN))
    }

    /// When it was last heard of, as far as a request is concerned that was sent then.
    pub(super) fn heard_since(&self, sent: Sent) -> Duration {
        self.heard_at.map_or(sent.at, |at| at.max(sent.at))
    }

    /// When it last sent something, if it ever did.
    pub(super) fn heard_at(&self) -> Option<Duration> {
        self.heard_at
    }

    /// Whether it has answered others meanwhile, for so long that it must have lost this one.
    pub(super) fn passed_over(&self, sent: Sent) -> bool {
        self.heard_bytes - sent.heard_bytes > 2 * sent.queued_bytes + PASSED_OVER_BYTES
    }

    /// How long until the answer to what was sent then is here, at the rate of late. A peer that is silent is expected to stay
    /// so for as long again.
    pub(super) fn left(&self, now: Duration, sent: Sent) -> Duration {
        let rate = self.rate_bytes_per_s.unwrap_or(RATE_OPTIMISTIC);
        let came = self.heard_bytes - sent.heard_bytes;
        let silence = now.saturating_sub(self.heard_since(sent));
        time_for(sent.queued_bytes.saturating_sub(came), rate).max(silence)
    }

    /// Whether more is queued at it than it sends in a reasonable time.
    pub(super) fn is_overfull(&self) -> bool {
        let rate = self.rate_bytes_per_s.unwrap_or(RATE_OPTIMISTIC);
        self.queued_bytes > self.window_bytes(false) * 2
            && time_for(self.queued_bytes, rate) > QUEUE_MAX
    }

    /// Its connection has counted so many bytes of answers so far. Tells whether it is a sign of life.
    pub(super) fn on_progress(&mut self, now: Duration, counted_bytes: u64) -> bool {
        let news = counted_bytes.saturating_sub(self.counted_bytes);
        self.counted_bytes = counted_bytes;
        self.heard(now, news)
    }

    fn heard(&mut self, now: Duration, news: u64) -> bool {
        self.heard_bytes += news;
        self.unheard_bytes += news;
        self.slow_down(now);
        if self.unheard_bytes < HEARD_BYTES {
            return false;
        }
        // A row of failures ends with an answer that is one, not with bytes of which nobody knows yet what they are.
        self.unheard_bytes = 0;
        self.heard_at = Some(now);
        true
    }

    /// Notices at once when a peer that has enough to send sends less than it did.
    fn slow_down(&mut self, now: Duration) {
        let Some((since, had)) = self.metered else {
            self.metered = Some((now, self.heard_bytes));
            return;
        };
        let over = now.saturating_sub(since);
        if over < METER + self.rtt.unwrap_or(RTT_UNMEASURED) {
            return;
        }
        self.metered = Some((now, self.heard_bytes));
        let came = self.heard_bytes - had;
        let sample = rate_of(came, over);
        let is_busy = self.queued_bytes > came && came > 0;
        if let Some(rate) = self.rate_bytes_per_s
            && is_busy
            && sample < rate / 2
        {
            self.rate_bytes_per_s = Some(sample.max(RATE_MIN));
        }
    }

    fn round_trip_at_worst(&self) -> Duration {
        match self.rtt {
            None => RTT_UNMEASURED * 2,
            Some(rtt) => rtt + self.deviation * 4,
        }
    }

    /// A request was sent.
    pub(super) fn on_sent(&mut self, now: Duration, bytes: u64) -> Sent {
        let sent = Sent {
            at: now,
            delivered_bytes: self.delivered_bytes,
            heard_bytes: self.heard_bytes,
            queued_bytes: self.queued_bytes + bytes,
            alone: self.queued_bytes == 0,
            expected: now + self.expected(bytes),
        };
        if self.queued_bytes == 0 {
            self.metered = Some((now, self.heard_bytes));
        }
        self.queued_bytes += bytes;
        sent
    }

    /// A request ended, in whatever way.
    pub(super) fn on_ended(&mut self, bytes: u64) {
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
    }

    /// A round trip without payload was measured.
    pub(super) fn on_round_trip(&mut self, took: Duration) {
        let grown = self.rtt_least.map_or(took, |least| least * 9 / 8);
        self.rtt_least = Some(grown.min(took));
        match self.rtt {
            None => {
                self.rtt = Some(took);
                self.deviation = took / 2;
            }
            Some(rtt) => {
                self.deviation = (self.deviation * 3 + took.abs_diff(rtt)) / 4;
                self.rtt = Some((rtt * 7 + took) / 8);
            }
        }
    }

    /// Verified data came.
    pub(super) fn on_data(&mut self, now: Duration, sent: Sent, bytes: u64) {
        self.on_alive();
        self.heard_at = Some(now);
        self.delivered_bytes += bytes;
        if self.counted_bytes == 0 {
            // Nobody counts parts of answers.
            self.heard_bytes += bytes;
        }
        let took = now.saturating_sub(sent.at);
        // The round trip is part of a lone request's time; with others queued before it, data flowed all the while.
        let flowing = match self.rtt {
            Some(rtt) if sent.alone => took.saturating_sub(rtt).max(took / 4),
            _ => took,
        };
        let delivered = self.delivered_bytes - sent.delivered_bytes;
        let sample = rate_of(delivered, flowing).max(RATE_MIN);
        self.rate_bytes_per_s = Some(match self.rate_bytes_per_s {
            None => sample,
            Some(rate) => (rate / 4).saturating_mul(3).saturating_add(sample / 4),
        });
        match self.rtt {
            // A whole answer in less time than the round trip says that the round trip is shorter.
            Some(rtt) if took < rtt => {
                self.rtt = Some(took);
                self.rtt_least = Some(self.rtt_least.map_or(took, |least| least.min(took)));
            }
            Some(_) => {
                self.deviation = (self.deviation * 3 + now.abs_diff(sent.expected).min(took)) / 4;
            }
            None => {
                self.rtt = Some(took.min(RTT_UNMEASURED));
                self.deviation = took.min(RTT_UNMEASURED) / 2;
            }
        }
    }

    /// It answered, with something else than data.
    pub(super) fn on_alive(&mut self) {
        self.failures = 0;
        self.failed_at = None;
        self.busy = 0;
        self.dropped = false;
    }

    /// It has too much to do.
    pub(super) fn on_busy(&mut self, now: Duration) {
        let pause = BUSY_PAUSE * 2u32.pow(self.busy.min(8));
        self.busy += 1;
        self.paused_until = self.paused_until.max(now + pause.min(BUSY_PAUSE_MAX));
    }

    /// A request failed or timed out; true when the peer is to be dropped now. Requests that were under way together
    /// fail together: they count once.
    pub(super) fn on_failure(&mut self, now: Duration, sent: Sent, timed_out: bool) -> bool {
        if self.failed_at.is_some_and(|failed_at| sent.at < failed_at) {
            return false;
        }
        self.failed_at = Some(now);
        self.failures += 1;
        if timed_out {
            let rate = self.rate_bytes_per_s.unwrap_or(RATE_PESSIMISTIC * 2);
            self.rate_bytes_per_s = Some((rate / 2).max(RATE_MIN));
        }
        if self.failures >= FAILURES_MAX {
            self.failures = FAILURES_MAX - 1;
            self.dropped = true;
            self.paused_until = now + DROP_PAUSE;
            return true;
        }
        let pause = FAILURE_PAUSE * 2u32.pow(self.failures);
        self.paused_until = self.paused_until.max(now + pause);
        false
    }

    /// It told its load: block answers that it works on.
    pub(super) fn on_load(&mut self, load: u32) {
        self.load = load;
    }

    /// Dropped for its failures, and the pause isn't over.
    pub(super) fn is_dropped(&self, now: Duration) -> bool {
        self.dropped && now < self.paused_until
    }
}

/// How long `bytes` take at `rate` bytes a second.
fn time_for(bytes: u64, rate: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1))
}

/// Bytes a second.
fn rate_of(bytes: u64, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1_000_000) / micros
}

/// How many bytes `rate` bytes a second move in `time`.
fn bytes_in(time: Duration, rate: u64) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    rate.saturating_mul(millis) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    /// A peer that has answered 1 MiB requests one at a time, each in `took`.
    fn measured(rtt_ms: u64, took_ms: u64) -> Peer {
        let mut peer = Peer::default();
        peer.on_round_trip(Duration::from_millis(rtt_ms));
        let mut now = Duration::ZERO;
        for _ in 0..50 {
            let sent = peer.on_sent(now, MIB);
            now += Duration::from_millis(took_ms);
            peer.on_ended(MIB);
            peer.on_data(now, sent, MIB);
        }
        peer
    }

    #[test]
    fn the_window_follows_bandwidth_and_delay() {
        let near = measured(1, 57);
        let far = measured(200, 256);
        let fast = measured(1, 5);
        let slow = measured(20, 8000);
        assert!(near.window_bytes(false) > 4 * MIB);
        assert!((MIB..2 * MIB).contains(&near.window_bytes(true)));
        assert!(far.window_bytes(false) > 2 * near.window_bytes(false));
        assert_eq!(fast.window_bytes(false), WINDOW_BYTES.1);
        assert_eq!(slow.window_bytes(false), WINDOW_BYTES.0);
        assert_eq!(slow.window_bytes(true), WINDOW_BYTES.0);
        let moderate = measured(1, 1000);
        assert_eq!(moderate.window_bytes(true), QUEUE_BYTES_SHARED);
        assert!(
            slow.has_room(MIB, 1, false),
            "an idle peer gets one request, however slow"
        );
    }

    #[test]
    fn requests_to_slow_peers_are_small() {
        assert_eq!(measured(1, 11).request_blocks(16), 16);
        assert!(measured(20, 8000).request_blocks(16) <= 2);
        assert_eq!(
            Peer::default().request_blocks(16),
            REQUEST_BLOCKS_UNMEASURED
        );
    }

    #[test]
    fn time_outs_grow_with_what_is_queued_between_two_and_ten_seconds() {
        let mut peer = measured(20, 1000);
        peer.on_sent(Duration::ZERO, MIB / 16);
        assert_eq!(peer.time_out(), TIME_OUT.0);
        peer.on_sent(Duration::ZERO, 2 * MIB);
        let some = peer.time_out();
        assert!(some > Duration::from_secs(3) && some < Duration::from_secs(8));
        peer.on_sent(Duration::ZERO, 100 * MIB);
        assert_eq!(peer.time_out(), Duration::from_secs(10));
        assert!(peer.late_after() <= peer.time_out());
    }

    #[test]
    fn a_link_of_one_megabit_gets_its_first_answer_through() {
        let mut peer = Peer::default();
        let bytes = peer.request_blocks(16) * BLOCK_BYTES;
        peer.on_sent(Duration::ZERO, bytes);
        assert!(peer.time_out() > time_for(bytes, 125_000));
    }

    #[test]
    fn failures_of_requests_that_were_under_way_together_count_once() {
        let mut peer = Peer::default();
        let at = |ms| Duration::from_millis(ms);
        let together: Vec<Sent> = (0..5).map(|_| peer.on_sent(at(0), MIB)).collect();
        for sent in together {
            assert!(!peer.on_failure(at(1000), sent, true));
        }
        let second = peer.on_sent(at(2000), MIB);
        assert!(!peer.on_failure(at(3000), second, true));
        let third = peer.on_sent(at(4000), MIB);
        assert!(peer.on_failure(at(5000), third, true));
        assert!(peer.is_dropped(at(5000)));
        assert!(!peer.is_dropped(at(5000) + DROP_PAUSE));
    }

    #[test]
    fn an_answer_ends_the_row_of_failures() {
        let mut peer = Peer::default();
        for second in 0..20 {
            let now = Duration::from_secs(second);
            let sent = peer.on_sent(now, MIB);
            assert!(!peer.on_failure(now, sent, false));
            peer.on_alive();
        }
    }

    #[test]
    fn load_and_queue_raise_the_expected_time() {
        let idle = measured(10, 20);
        let mut loaded = measured(10, 20);
        loaded.on_load(5);
        let mut queued = measured(10, 20);
        queued.on_sent(Duration::ZERO, 4 * MIB);
        assert!(idle.expected(MIB) < loaded.expected(MIB));
        assert!(idle.expected(MIB) < queued.expected(MIB));
        assert!(
            measured(10, 20).expected(MIB) < Peer::default().expected(MIB),
            "100 ms are assumed until measured"
        );
    }
}
