//! The address book: whom to dial, when, and who is blocked until when.
//!
//! Pure: time and randomness come in as arguments. Invariants: an address is dialed by at most one attempt at a time; the
//! pause after each failure grows to [`PAUSE_MAX`], whatever anybody adds; all lists are bounded; addresses that were merely
//! heard of keep neither permanent ones nor those of lost peers from being noted and dialed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};

use super::transport::{peer_of, without_peer};

/// Pause after the first failure; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause between two attempts.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Attempts before an address that was merely heard of is given up.
const TRIES: u32 = 4;
/// How long a peer that went away is dialed at its last addresses, with pauses of at most [`REDIAL_PAUSE_MAX`]: a short cut
/// of the network heals within seconds.
const REDIAL_FOR: Duration = Duration::from_secs(300);
const REDIAL_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Most addresses in the book. Further ones that were heard of are passed over; others take the place of one that matters
/// less, and permanent ones are noted in any case.
const ENTRIES_MAX: usize = 1024;
/// Most dials at once.
const DIALING_MAX: usize = 32;
/// Most dials at once to addresses that were merely heard of, all together and of one peer.
const HEARD_DIALING_MAX: usize = 16;
const HEARD_DIALING_PER_PEER_MAX: usize = 4;
/// Most addresses that were merely heard of for one peer.
const HEARD_PER_PEER_MAX: usize = super::proto::ADDRESSES_MAX;
/// Most blocked peers; beyond it the block that ends first is lifted.
const BLOCKED_MAX: usize = 4096;
/// First block for an offence; it doubles with each further one.
const BLOCK_MIN: Duration = Duration::from_secs(10);
/// Longest block for an offence.
const BLOCK_MAX: Duration = Duration::from_secs(120);
/// An offence is forgotten after this.
const OFFENCE_FORGOTTEN: Duration = Duration::from_secs(3600);

/// One address. `peer` is who must be there, by the address itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) address: Multiaddr,
    pub(super) peer: Option<PeerId>,
}

impl Target {
    pub(super) fn new(address: Multiaddr) -> Self {
        Self {
            peer: peer_of(&address),
            address: without_peer(address),
        }
    }
}

#[derive(Debug)]
struct Entry {
    permanent: bool,
    /// Who was found there.
    found: Option<PeerId>,
    failures: u32,
    next: Instant,
    dialing: bool,
    /// The network changed during this dial: should it fail, that says nothing, and the next follows at once.
    outdated: bool,
    /// Dialed until then, however often it fails.
    until: Option<Instant>,
    /// No longer dialed; kept until `next` so that adding it again doesn't restart it at once.
    resting: bool,
}

/// Why an address is in the book; what comes first is dialed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Permanent,
    Lost,
    Heard,
}

impl Entry {
    fn rank(&self) -> Rank {
        match (self.permanent, self.until) {
            (true, _) => Rank::Permanent,
            (false, Some(_)) => Rank::Lost,
            (false, None) => Rank::Heard,
        }
    }
}

/// Room for further dials.
struct Room {
    all: usize,
    heard: usize,
    /// Dials to addresses that were heard of, by peer.
    of_peer: BTreeMap<PeerId, usize>,
}

impl Room {
    fn has(&self, target: &Target, rank: Rank) -> bool {
        let of_peer = || target.peer.and_then(|peer| self.of_peer.get(&peer));
        self.all > 0
            && (rank != Rank::Heard
                || self.heard > 0
                    && of_peer().is_none_or(|dialing| *dialing < HEARD_DIALING_PER_PEER_MAX))
    }

    fn take(&mut self, target: &Target, rank: Rank) {
        self.all = self.all.saturating_sub(1);
        if rank == Rank::Heard {
            self.heard = self.heard.saturating_sub(1);
            if let Some(peer) = target.peer {
                *self.of_peer.entry(peer).or_default() += 1;
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Book {
    local: PeerId,
    entries: BTreeMap<Target, Entry>,
    blocked: BTreeMap<PeerId, Instant>,
    /// Blocked since the swarm was last told.
    newly_blocked: BTreeSet<PeerId>,
    offences: BTreeMap<PeerId, (u32, Instant)>,
}

impl Book {
    pub(super) fn new(local: PeerId) -> Self {
        Self {
            local,
            entries: BTreeMap::new(),
            blocked: BTreeMap::new(),
            newly_blocked: BTreeSet::new(),
            offences: BTreeMap::new(),
        }
    }

    /// Notes where a peer may be. See [`super::Net::add_peer`].
    pub(super) fn add(&mut self, now: Instant, address: Multiaddr, permanent: bool) {
        self.insert(now, Target::new(address), permanent, None);
    }

    fn insert(&mut self, now: Instant, target: Target, permanent: bool, until: Option<Instant>) {
        let blocked = |peer| self.is_blocked(now, &peer);
        if target.peer == Some(self.local) || !permanent && target.peer.is_some_and(blocked) {
            return;
        }
        if !self.entries.contains_key(&target) {
            let heard = !permanent && until.is_none();
            if heard && !self.has_room_for(&target) || !heard && !self.make_room() && !permanent {
                return;
            }
        }
        match self.entries.get_mut(&target) {
            Some(entry) => {
                entry.until = entry.until.max(until);
                if permanent || until.is_some() {
                    entry.permanent |= permanent;
                    entry.resting = false;
                }
            }
            None => {
                let entry = Entry {
                    permanent,
                    found: None,
                    failures: 0,
                    next: now,
                    dialing: false,
                    outdated: false,
                    until,
                    resting: false,
                };
                self.entries.insert(target, entry);
            }
        }
    }

    /// Whether an address that was heard of may be noted.
    fn has_room_for(&self, target: &Target) -> bool {
        let of_peer = || {
            let entries = self.entries.iter();
            let heard = entries
                .filter(|(other, entry)| other.peer == target.peer && entry.rank() == Rank::Heard);
            heard.count()
        };
        self.entries.len() < ENTRIES_MAX
            && (target.peer.is_none() || of_peer() < HEARD_PER_PEER_MAX)
    }

    /// Sees to it that there is room for an address that is not merely heard of: drops one that was, the one most often
    /// dialed in vain, or else that of the peer that was lost first. Returns whether there is.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < ENTRIES_MAX {
            return true;
        }
        let idle = self.entries.iter().filter(|(_, entry)| !entry.dialing);
        let spare = idle.filter(|(_, entry)| entry.rank() != Rank::Permanent);
        let least = spare.max_by_key(|(_, entry)| {
            let lost = std::cmp::Reverse(entry.until);
            (entry.rank(), lost, entry.resting, entry.failures)
        });
        let least = least.map(|(target, _)| target.clone());
        least.is_some_and(|least| self.entries.remove(&least).is_some())
    }

    /// What to dial now; each must be answered by [`Book::failed`] or [`Book::reached`].
    pub(super) fn due(&mut self, now: Instant, up: impl Fn(&PeerId) -> bool) -> Vec<Target> {
        self.entries
            .retain(|_, entry| !(entry.resting && entry.next <= now));
        let mut room = self.room();
        let blocked = &self.blocked;
        let mut candidates = Vec::new();
        for (target, entry) in &mut self.entries {
            let peer = target.peer.or(entry.found);
            let waits = entry.resting || entry.dialing || entry.next > now;
            if waits || !room.has(target, entry.rank()) || peer.is_some_and(|peer| up(&peer)) {
                continue;
            }
            if let Some(until) = peer.and_then(|peer| blocked.get(&peer)).copied()
                && until > now
            {
                entry.next = until;
                continue;
            }
            candidates.push((entry.rank(), entry.next, target.clone()));
        }
        candidates.sort();
        let mut due = Vec::new();
        for (rank, _, target) in candidates {
            if room.has(&target, rank)
                && let Some(entry) = self.entries.get_mut(&target)
            {
                entry.dialing = true;
                entry.outdated = false;
                room.take(&target, rank);
                due.push(target);
            }
        }
        due
    }

    fn room(&self) -> Room {
        let mut room = Room {
            all: DIALING_MAX,
            heard: HEARD_DIALING_MAX,
            of_peer: BTreeMap::new(),
        };
        for (target, entry) in self.entries.iter().filter(|(_, entry)| entry.dialing) {
            room.take(target, entry.rank());
        }
        room
    }

    /// When to call [`Book::due`] or [`Book::unblocked`] next.
    pub(super) fn next(&self, up: impl Fn(&PeerId) -> bool) -> Option<Instant> {
        let room = self.room();
        let waiting = self.entries.iter().filter(|(target, entry)| {
            !entry.dialing
                && room.has(target, entry.rank())
                && !target.peer.or(entry.found).is_some_and(|peer| up(&peer))
        });
        let dial = waiting.map(|(_, entry)| entry.next).min();
        let unblock = self.blocked.values().min().copied();
        dial.into_iter().chain(unblock).min()
    }

    /// The address answered, and this peer is there. It proved itself, or else [`Book::failed`] follows.
    pub(super) fn found(&mut self, target: &Target, peer: PeerId) {
        if let Some(entry) = self.entries.get_mut(target) {
            entry.found = Some(peer);
        }
    }

    /// The dial ended in a proven peer.
    pub(super) fn reached(&mut self, target: &Target) {
        if let Some(entry) = self.entries.get_mut(target) {
            entry.dialing = false;
            entry.failures = 0;
            if !entry.permanent {
                self.entries.remove(target);
            }
        }
    }

    /// The dial failed. `jitter` is from 0 to 1. Returns whether that is news: the first failure in a row where somebody is meant to be.
    pub(super) fn failed(&mut self, now: Instant, target: &Target, jitter: f64) -> bool {
        let Some(entry) = self.entries.get_mut(target) else {
            return false;
        };
        entry.dialing = false;
        entry.found = None;
        if std::mem::take(&mut entry.outdated) {
            return false;
        }
        let pause_max = match entry.until {
            Some(until) if now < until => REDIAL_PAUSE_MAX,
            _ => PAUSE_MAX,
        };
        let doubled = PAUSE_MIN.saturating_mul(1 << entry.failures.min(10));
        let pause = doubled.min(pause_max);
        entry.failures = entry.failures.saturating_add(1);
        entry.next = now + pause.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 4.0);
        let hopeless = match entry.until {
            Some(until) => now >= until,
            None => entry.failures >= TRIES,
        };
        if hopeless && !entry.permanent {
            entry.resting = true;
            entry.next = now + PAUSE_MAX;
        }
        entry.failures == 1 && entry.rank() != Rank::Heard
    }

    /// The address leads to this node itself.
    pub(super) fn is_self(&mut self, target: &Target) {
        self.entries.remove(target);
    }

    /// A proven peer went away; `addresses` is where it was. One that said so is dialed again only where that is asked for
    /// permanently.
    pub(super) fn lost(
        &mut self,
        now: Instant,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        left: bool,
        jitter: f64,
    ) {
        let soon = now + PAUSE_MIN.mul_f64(0.5 + jitter.clamp(0.0, 1.0));
        if !left {
            for address in addresses {
                let target = Target {
                    address: without_peer(address),
                    peer: Some(peer),
                };
                self.insert(soon, target, false, Some(now + REDIAL_FOR));
            }
        }
        for (target, entry) in &mut self.entries {
            if target.peer.or(entry.found) == Some(peer) {
                entry.failures = 0;
                entry.next = soon;
                entry.until = (!left).then_some(now + REDIAL_FOR);
            }
        }
    }

    /// The network is another one than a moment ago: whom it makes sense to dial is dialed at `when`, and what is under way then
    /// once more if it fails.
    pub(super) fn hurry(&mut self, when: Instant) {
        for entry in self.entries.values_mut() {
            if entry.dialing {
                entry.outdated = true;
                entry.next = when;
            }
            if entry.rank() != Rank::Heard {
                entry.failures = 0;
                entry.next = entry.next.min(when);
            }
        }
    }

    /// Forgets where a peer was heard of, permanent addresses excepted.
    pub(super) fn settle(&mut self, peer: PeerId) {
        self.entries.retain(|target, entry| {
            entry.permanent || entry.dialing || target.peer.or(entry.found) != Some(peer)
        });
    }

    pub(super) fn block(&mut self, now: Instant, peer: PeerId, for_how_long: Duration) {
        let until = now + for_how_long;
        let until = self.blocked.get(&peer).map_or(until, |old| until.max(*old));
        self.blocked.insert(peer, until);
        self.newly_blocked.insert(peer);
        if self.blocked.len() > BLOCKED_MAX {
            let first = self.blocked.iter().min_by_key(|(_, until)| **until);
            if let Some(first) = first.map(|(peer, _)| *peer) {
                // Its time is over as of now: the swarm hears of it with the others.
                self.blocked.insert(first, now);
            }
        }
    }

    /// Blocks for an offence: longer each time.
    pub(super) fn offence(&mut self, now: Instant, peer: PeerId) -> Duration {
        self.offences
            .retain(|_, (_, at)| now.duration_since(*at) < OFFENCE_FORGOTTEN);
        if self.offences.len() >= BLOCKED_MAX {
            self.offences.pop_first();
        }
        let (count, at) = self.offences.entry(peer).or_insert((0, now));
        let duration = BLOCK_MIN
            .saturating_mul(1 << (*count).min(10))
            .min(BLOCK_MAX);
        *count += 1;
        *at = now;
        self.block(now, peer, duration);
        duration
    }

    pub(super) fn is_blocked(&self, now: Instant, peer: &PeerId) -> bool {
        self.blocked.get(peer).is_some_and(|until| *until > now)
    }

    /// Peers that the swarm must refuse from now on.
    pub(super) fn take_newly_blocked(&mut self) -> BTreeSet<PeerId> {
        std::mem::take(&mut self.newly_blocked)
    }

    /// Peers whose time is over.
    pub(super) fn unblocked(&mut self, now: Instant) -> Vec<PeerId> {
        let over: Vec<PeerId> = self
            .blocked
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(peer, _)| *peer)
            .collect();
        over.iter().for_each(|peer| {
            self.blocked.remove(peer);
        });
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    /// Dials whatever is due for a while, always in vain; tells when.
    fn attempts(book: &mut Book, start: Instant, seconds: u64) -> Vec<Duration> {
        let mut at = Vec::new();
        let mut now = start;
        while let Some(next) = book.next(|_| false) {
            now = next.max(now);
            if now > start + Duration::from_secs(seconds) {
                break;
            }
            for target in book.due(now, |_| false) {
                at.push(now - start);
                book.failed(now, &target, 0.5);
            }
        }
        at
    }

    #[test]
    fn an_address_that_was_heard_of_is_given_up_after_four_tries() {
        let now = Instant::now();
        let mut book = Book::new(PeerId::random());
        book.add(now, address(1), false);
        assert_eq!(attempts(&mut book, now, 600).len(), TRIES as usize);
        assert!(book.entries.is_empty());
    }

    #[test]
    fn a_permanent_address_is_tried_for_ever_with_pauses_of_at_most_half_a_minute() {
        let now = Instant::now();
        let mut book = Book::new(PeerId::random());
        book.add(now, address(1), true);
        let at = attempts(&mut book, now, 3600);
        assert!(
            (3600 / 31..3600 / 25 + 10).contains(&(at.len() as u64)),
            "{at:?}"
        );
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] <= PAUSE_MAX));
    }

    #[test]
    fn adding_a_dead_address_again_and_again_does_not_make_it_spin() {
        let start = Instant::now();
        let mut book = Book::new(PeerId::random());
        let mut dials = 0;
        for tenth in 0..3000 {
            let now = start + Duration::from_millis(100 * tenth);
            book.add(now, address(1), false);
            for target in book.due(now, |_| false) {
                dials += 1;
                book.failed(now, &target, 0.5);
            }
        }
        assert!((4..=40).contains(&dials), "{dials} dials in 300 s");
    }

    #[test]
    fn an_address_is_dialed_once_at_a_time_and_not_while_its_peer_is_up() {
        let now = Instant::now();
        let peer = PeerId::random();
        let mut book = Book::new(PeerId::random());
        book.add(now, address(1), true);
        let due = book.due(now, |_| false);
        assert_eq!(due.len(), 1);
        assert!(book.due(now, |_| false).is_empty());
        book.found(&due[0], peer);
        book.reached(&due[0]);
        assert!(book.due(now, |up| *up == peer).is_empty());
        assert_eq!(book.next(|up| *up == peer), None);
        book.lost(now, peer, vec![], false, 0.5);
        let later = now + Duration::from_secs(1);
        assert_eq!(book.due(later, |_| false), due);
    }

    #[test]
    fn a_lost_peer_is_dialed_where_it_was_for_five_minutes() {
        let now = Instant::now();
        let peer = PeerId::random();
        let mut book = Book::new(PeerId::random());
        book.lost(now, peer, vec![address(1)], false, 0.5);
        let at = attempts(&mut book, now, 3600);
        assert!((150..210).contains(&at.len()), "{at:?}");
        assert!(*at.last().unwrap() < REDIAL_FOR + PAUSE_MAX);
    }

    #[test]
    fn a_peer_that_said_goodbye_is_not_dialed() {
        let now = Instant::now();
        let mut book = Book::new(PeerId::random());
        book.lost(now, PeerId::random(), vec![address(1)], true, 0.5);
        assert_eq!(book.next(|_| false), None);
    }

    fn anybodys(number: u32) -> Multiaddr {
        let [_, a, b, c] = number.to_be_bytes();
        let address: Multiaddr = format!("/ip4/10.{a}.{b}.{c}/tcp/1").parse().unwrap();
        address.with_p2p(PeerId::random()).unwrap()
    }

    #[test]
    fn addresses_that_were_heard_of_starve_neither_permanent_ones_nor_lost_peers() {
        let now = Instant::now();
        let mut book = Book::new(PeerId::random());
        for number in 0..3000 {
            book.add(now, anybodys(number), false);
        }
        assert_eq!(book.entries.len(), ENTRIES_MAX);
        let heard = book.due(now, |_| false);
        assert_eq!(heard.len(), HEARD_DIALING_MAX);
        assert!(
            book.next(|_| false).is_none(),
            "nothing to do until one ends"
        );
        // The last in the order of addresses.
        let (permanent, lost) = ("/ip4/99.0.0.1/tcp/1", "/ip4/99.0.0.2/tcp/1");
        book.add(now, permanent.parse().unwrap(), true);
        book.lost(
            now,
            PeerId::random(),
            vec![lost.parse().unwrap()],
            false,
            0.5,
        );
        assert_eq!(book.entries.len(), ENTRIES_MAX);
        let later = now + Duration::from_secs(2);
        let due = book.due(later, |_| false);
        let due: Vec<_> = due.iter().map(|due| due.address.to_string()).collect();
        assert_eq!(due, [permanent, lost]);
        // Others take their turns by the time since which they wait.
        book.failed(later, &heard[0], 0.5);
        let next = book.due(later, |_| false);
        assert!(next.len() == 1 && next[0] != heard[0]);
    }

    #[test]
    fn one_peer_that_was_heard_of_takes_up_a_few_dials_and_some_addresses() {
        let now = Instant::now();
        let mut book = Book::new(PeerId::random());
        let peer = PeerId::random();
        for port in 1..100 {
            book.add(now, address(port).with_p2p(peer).unwrap(), false);
        }
        assert_eq!(book.entries.len(), HEARD_PER_PEER_MAX);
        let mut dialed = BTreeSet::new();
        let mut at = now;
        while let Some(next) = book.next(|_| false) {
            at = next.max(at);
            let due = book.due(at, |_| false);
            assert!(due.len() <= HEARD_DIALING_PER_PEER_MAX);
            for target in due {
                book.failed(at, &target, 0.5);
                dialed.insert(target);
            }
        }
        assert_eq!(dialed.len(), HEARD_PER_PEER_MAX, "each gets its turn");
    }

    #[test]
    fn where_all_places_are_taken_by_lost_peers_the_first_lost_gives_way() {
        let now = Instant::now();
        let mut book = Book::new(PeerId::random());
        for second in 0..=ENTRIES_MAX as u64 {
            let at = now + Duration::from_millis(second);
            let address = anybodys(u32::try_from(second).unwrap());
            book.lost(at, PeerId::random(), vec![address], false, 0.5);
        }
        assert_eq!(book.entries.len(), ENTRIES_MAX);
        let first = book.entries.values().filter_map(|entry| entry.until).min();
        assert_eq!(first, Some(now + Duration::from_millis(1) + REDIAL_FOR));
    }

    #[test]
    fn a_dial_during_which_the_network_changed_is_made_again_at_once_and_does_not_count() {
        let now = Instant::now();
        let mut book = Book::new(PeerId::random());
        for (port, permanent) in [(1, true), (2, false)] {
            book.add(
                now,
                address(port).with_p2p(PeerId::random()).unwrap(),
                permanent,
            );
        }
        let due = book.due(now, |_| false);
        assert_eq!(due.len(), 2);
        let when = now + Duration::from_millis(100);
        book.hurry(when);
        for target in &due {
            book.failed(now, target, 0.5);
        }
        assert_eq!(book.next(|_| false), Some(when));
        let again = book.due(when, |_| false);
        assert_eq!(again, due);
        // That was for once.
        book.failed(when, &again[0], 0.5);
        book.failed(when, &again[1], 0.5);
        assert!(book.next(|_| false) > Some(when + PAUSE_MIN / 2));
        assert!(book.entries.values().all(|entry| entry.failures == 1));
    }

    #[test]
    fn this_node_and_blocked_peers_are_passed_over() {
        let now = Instant::now();
        let (local, other) = (PeerId::random(), PeerId::random());
        let mut book = Book::new(local);
        book.block(now, other, Duration::from_secs(60));
        for peer in [local, other] {
            book.add(now, address(1).with_p2p(peer).unwrap(), true);
        }
        assert!(book.due(now, |_| false).is_empty());
        assert_eq!(book.take_newly_blocked(), BTreeSet::from([other]));
        assert!(book.unblocked(now + Duration::from_secs(59)).is_empty());
        assert_eq!(book.unblocked(now + Duration::from_secs(60)), [other]);
    }

    #[test]
    fn blocks_for_offences_grow_up_to_two_minutes() {
        let now = Instant::now();
        let peer = PeerId::random();
        let mut book = Book::new(PeerId::random());
        let lengths: Vec<u64> = (0..8).map(|_| book.offence(now, peer).as_secs()).collect();
        assert_eq!(lengths, [10, 20, 40, 80, 120, 120, 120, 120]);
    }
}
