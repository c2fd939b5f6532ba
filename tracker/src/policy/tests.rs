use proptest::prelude::*;

use super::*;

const LEASE: u64 = 90_000;

fn actions(policy: &mut TrackerPolicy, now: u64) -> Vec<Action> {
    std::iter::from_fn(|| policy.poll_action(now)).collect()
}

fn registered(now: u64) -> TrackerPolicy {
    let mut policy = TrackerPolicy::new(now);
    assert_eq!(actions(&mut policy, now), [Action::Connect]);
    policy.handle_connected(now);
    assert_eq!(
        actions(&mut policy, now),
        [Action::Announce, Action::PollHeads]
    );
    policy.handle_announced(now, LEASE, true);
    policy.handle_heads_polled(now);
    assert!(policy.is_registered());
    policy
}

#[test]
fn it_connects_at_once_and_then_renews_and_polls_every_thirty_seconds() {
    let mut policy = registered(100);
    assert_eq!(actions(&mut policy, 30_099), []);
    assert_eq!(policy.poll_timeout(), Some(30_100));
    assert_eq!(
        actions(&mut policy, 30_100),
        [Action::Renew, Action::PollHeads]
    );
    assert_eq!(policy.poll_timeout(), None);
    policy.handle_renewed(30_200, LEASE, true);
    assert_eq!(policy.poll_timeout(), Some(60_200));
}

#[test]
fn a_short_lease_is_renewed_in_a_third_of_it() {
    let mut policy = TrackerPolicy::new(0);
    policy.handle_connected(0);
    policy.handle_announced(0, 900, true);
    assert_eq!(
        actions(&mut policy, 0),
        [Action::Announce, Action::PollHeads]
    );
    policy.handle_announced(0, 900, true);
    assert_eq!(policy.poll_timeout(), Some(300));
}

#[test]
fn pauses_double_up_to_thirty_seconds_and_begin_anew_once_announced() {
    let mut policy = TrackerPolicy::new(0);
    let mut now = 0;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        assert_eq!(actions(&mut policy, now), [Action::Connect]);
        // The largest jitter.
        policy.handle_disconnected(now, BACKOFF_FIRST_MS * 1_000_000 - 1);
        let at = policy.poll_timeout().unwrap();
        pauses.push(at - now);
        now = at;
    }
    for (pause, most) in pauses
        .iter()
        .zip([500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000])
    {
        assert!((most / 2..=most).contains(pause), "{pause} of {most}");
    }
    actions(&mut policy, now);
    policy.handle_connected(now);
    // A session alone is no success: the tracker might refuse every announcement.
    policy.handle_disconnected(now, 0);
    assert_eq!(policy.poll_timeout(), Some(now + 15_000));
    now += 15_000;
    actions(&mut policy, now);
    policy.handle_connected(now);
    policy.handle_announced(now, LEASE, true);
    policy.handle_disconnected(now, 0);
    assert_eq!(policy.poll_timeout(), Some(now + 250));
}

#[test]
fn holdings_are_told_in_full_where_the_tracker_has_others() {
    let mut policy = TrackerPolicy::new(0);
    actions(&mut policy, 0);
    policy.handle_connected(0);
    actions(&mut policy, 0);
    policy.handle_announced(5, LEASE, false);
    assert_eq!(actions(&mut policy, 5), [Action::ReplaceHolds]);
    policy.handle_holds_changed(6);
    assert_eq!(actions(&mut policy, 5000), [], "one at a time");
    policy.handle_holds_told();
    assert_eq!(actions(&mut policy, 5000), [Action::UpdateHolds]);
}

#[test]
fn changes_are_gathered_for_a_second() {
    let mut policy = registered(0);
    for at in 10..500 {
        policy.handle_holds_changed(at);
    }
    assert_eq!(actions(&mut policy, 1009), []);
    assert_eq!(actions(&mut policy, 1010), [Action::UpdateHolds]);
}

#[test]
fn changes_before_the_lease_wait_for_the_comparison() {
    let mut policy = TrackerPolicy::new(0);
    actions(&mut policy, 0);
    policy.handle_connected(0);
    policy.handle_holds_changed(0);
    assert_eq!(
        actions(&mut policy, 2000),
        [Action::Announce, Action::PollHeads]
    );
    policy.handle_announced(2000, LEASE, false);
    assert_eq!(actions(&mut policy, 2000), [Action::ReplaceHolds]);
}

#[test]
fn a_forgotten_peer_announces_and_tells_everything_again() {
    let mut policy = registered(0);
    assert_eq!(
        actions(&mut policy, 30_000),
        [Action::Renew, Action::PollHeads]
    );
    policy.handle_forgotten(30_010);
    assert!(!policy.is_registered());
    assert_eq!(actions(&mut policy, 30_010), [Action::Announce]);
    policy.handle_announced(30_020, LEASE, false);
    assert_eq!(actions(&mut policy, 30_020), [Action::ReplaceHolds]);
}

#[test]
fn new_addresses_are_announced_at_once_and_end_a_pause() {
    let mut policy = registered(0);
    policy.handle_addresses_changed(10);
    assert_eq!(actions(&mut policy, 10), [Action::Announce]);
    for _ in 0..8 {
        policy.handle_disconnected(10, 0);
    }
    assert_eq!(actions(&mut policy, 20), []);
    policy.handle_addresses_changed(20);
    assert_eq!(actions(&mut policy, 20), [Action::Connect]);
}

proptest! {
    /// Whatever happens, it never says the same thing for ever, and never goes silent with nothing running.
    #[test]
    fn it_neither_spins_nor_falls_asleep(events in proptest::collection::vec((0u8..8, 0u64..40_000, any::<u64>()), 0..60)) {
        let mut policy = TrackerPolicy::new(0);
        let mut now = 0;
        for (event, later, random) in events {
            now += later;
            let said = actions(&mut policy, now);
            prop_assert!(said.len() <= 4);
            prop_assert_eq!(policy.poll_action(now), None);
            match event {
                0 if policy.link == Link::Connecting => policy.handle_connected(now),
                1 => policy.handle_disconnected(now, random),
                2 => policy.handle_announced(now, LEASE, random % 2 == 0),
                3 => policy.handle_holds_changed(now),
                4 => policy.handle_holds_told(),
                5 => policy.handle_heads_polled(now),
                6 => policy.handle_forgotten(now),
                _ => policy.handle_addresses_changed(now),
            }
            if matches!(policy.link, Link::Down { .. }) {
                prop_assert!(policy.poll_timeout().unwrap() <= now + BACKOFF_MAX_MS);
            }
        }
    }
}
