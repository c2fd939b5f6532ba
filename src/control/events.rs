//! What happened lately, for those who follow it: a ring of lines that forgets its oldest.
//!
//! Whoever follows is a place in the ring and no more. A slow one finds that the ring has moved on, is told how much it
//! missed, and goes on from there; nobody ever waits for it, and nothing is kept for it.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    text::json_line,
    types::{Event, Happened},
};

/// Most lines that are remembered.
const LINES_MAX: usize = 4096;
/// Most bytes of them together.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// The ring.
pub struct EventLog {
    ring: Mutex<Ring>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Bytes>,
    bytes: usize,
    /// Number of the oldest line that is remembered; the first ever put has 0.
    oldest: u64,
    ended: bool,
}

impl Ring {
    fn next(&self) -> u64 {
        self.oldest + self.lines.len() as u64
    }
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            ring: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl EventLog {
    /// Adds an event; the oldest ones make room.
    pub fn put(&self, event: &Event) {
        let line = line(event);
        {
            let mut ring = self.ring.lock();
            if ring.ended {
                return;
            }
            ring.bytes += line.len();
            ring.lines.push_back(line);
            // One that alone is larger than the bound is missed by all.
            while ring.lines.len() > LINES_MAX || ring.bytes > BYTES_MAX {
                let Some(forgotten) = ring.lines.pop_front() else {
                    break;
                };
                ring.bytes -= forgotten.len();
                ring.oldest += 1;
            }
        }
        self.changed.send_replace(());
    }

    /// Nothing more will happen: followers get what is left, then the end.
    pub fn end(&self) {
        self.put(&Event::now(Happened::Ended));
        self.ring.lock().ended = true;
        self.changed.send_replace(());
    }

    /// Follows from now on, or from the oldest line that is remembered; `greeting` comes first.
    pub fn follow(self: &Arc<Self>, from_oldest: bool, greeting: Happened) -> Follower {
        let ring = self.ring.lock();
        Follower {
            greeting: Some(line(&Event::now(greeting))),
            next: if from_oldest {
                ring.oldest
            } else {
                ring.next()
            },
            changed: self.changed.subscribe(),
            log: self.clone(),
        }
    }
}

/// A place in the ring.
pub struct Follower {
    greeting: Option<Bytes>,
    log: Arc<EventLog>,
    next: u64,
    changed: watch::Receiver<()>,
}

impl Follower {
    /// The next line, its end included, as soon as there is one; `None` after the last.
    pub async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        loop {
            {
                let ring = self.log.ring.lock();
                let missed = ring.oldest.saturating_sub(self.next);
                if missed > 0 {
                    self.next = ring.oldest;
                    return Some(line(&Event::now(Happened::Lagged { missed })));
                }
                let index = usize::try_from(self.next - ring.oldest).ok();
                if let Some(line) = index.and_then(|index| ring.lines.get(index)) {
                    self.next += 1;
                    return Some(line.clone());
                }
                if ring.ended {
                    return None;
                }
            }
            self.changed.changed().await.ok()?;
        }
    }
}

fn line(event: &Event) -> Bytes {
    match json_line(event) {
        Ok(text) => Bytes::from(text + "\n"),
        // Plain data with names for keys: there is nothing that JSON could not say.
        Err(error) => unreachable!("an event could not be written: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(path: &str) -> Event {
        Event {
            at_s: 1.5,
            what: Happened::Settled {
                path: path.to_owned(),
                path_hex: None,
            },
        }
    }

    async fn follow(log: &Arc<EventLog>, from_oldest: bool) -> Follower {
        let greeting = settled("greeting").what;
        let mut follower = log.follow(from_oldest, greeting.clone());
        assert_eq!(read(&mut follower).await, greeting);
        follower
    }

    async fn read(follower: &mut Follower) -> Happened {
        let line = follower.next().await.unwrap();
        let event: Event = serde_json::from_slice(line.strip_suffix(b"\n").unwrap()).unwrap();
        event.what
    }

    fn paths(count: usize) -> impl Iterator<Item = String> {
        (0..count).map(|number| format!("{number:07}"))
    }

    #[tokio::test]
    async fn followers_get_what_comes_after_them_and_then_the_end() {
        let log = Arc::new(EventLog::default());
        log.put(&settled("before"));
        let (mut all, mut new) = (follow(&log, true).await, follow(&log, false).await);
        log.put(&settled("after"));
        log.end();
        log.put(&settled("too late"));
        let is = |path: &str| settled(path).what;
        assert_eq!(read(&mut all).await, is("before"));
        assert_eq!(read(&mut all).await, is("after"));
        assert_eq!(read(&mut new).await, is("after"));
        assert_eq!(read(&mut all).await, Happened::Ended);
        assert_eq!(read(&mut new).await, Happened::Ended);
        assert_eq!(all.next().await, None);
        assert_eq!(new.next().await, None);
    }

    #[tokio::test]
    async fn who_is_slow_is_told_how_much_it_missed_and_goes_on() {
        let log = Arc::new(EventLog::default());
        let mut slow = follow(&log, false).await;
        for path in paths(LINES_MAX + 10) {
            log.put(&settled(&path));
        }
        assert_eq!(read(&mut slow).await, Happened::Lagged { missed: 10 });
        assert_eq!(read(&mut slow).await, settled("0000010").what);
    }

    #[tokio::test]
    async fn the_ring_is_bounded_by_bytes_too() {
        let log = Arc::new(EventLog::default());
        let long = "x".repeat(BYTES_MAX / 10);
        for _ in 0..100 {
            log.put(&settled(&long));
            assert!(log.ring.lock().bytes <= BYTES_MAX);
        }
        assert!(log.ring.lock().lines.len() >= 8);
        let mut slow = follow(&log, true).await;
        log.put(&settled(&"x".repeat(2 * BYTES_MAX)));
        assert_eq!(log.ring.lock().bytes, 0);
        assert!(matches!(read(&mut slow).await, Happened::Lagged { .. }));
        log.put(&settled("small"));
        assert_eq!(read(&mut slow).await, settled("small").what);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let log = Arc::new(EventLog::default());
        let mut follower = follow(&log, false).await;
        let waiting = tokio::spawn(async move { read(&mut follower).await });
        tokio::task::yield_now().await;
        log.put(&settled("a"));
        assert_eq!(waiting.await.unwrap(), settled("a").what);
    }

    #[test]
    fn an_event_is_one_flat_object_on_one_line() {
        let line = line(&settled("a\n\u{202e}"));
        assert_eq!(
            &line[..],
            b"{\"at_s\":1.5,\"event\":\"settled\",\"path\":\"a\\n\\u202e\"}\n"
        );
    }
}
