use std::sync::OnceLock;

use super::*;
use crate::manifest::{
    Applied, Dot, Entry, HybridTime, Key, Kind, NodeSource, Timestamp, TreeError, TreePath,
    Version, Versions, WriterNumber, apply, empty_root,
};

#[derive(Clone, Copy)]
enum Manner {
    All,
    /// One node of those asked for.
    One,
    Silent,
    Busy,
    /// Behind a slow link: gives few nodes in time.
    Far,
    /// Knows of none.
    Empty,
    /// Gives another node than the one asked for.
    Other,
    /// Gives more than it is asked for.
    TooMany,
    /// Gives bytes with the hash asked for that are no node.
    Invalid,
}

/// Members with their manners, what trackers have, and who was asked and blamed.
#[derive(Default)]
struct Company {
    members: Vec<(PeerId, Manner)>,
    copy: BTreeMap<NodeHash, Vec<u8>>,
    asked: Mutex<Vec<PeerId>>,
    copy_asked: Mutex<Vec<usize>>,
    blamed: Mutex<Vec<(PeerId, String)>>,
}

impl Company {
    fn new(manners: &[Manner]) -> Self {
        let manners = manners.iter();
        Self {
            members: manners.map(|manner| (PeerId::random(), *manner)).collect(),
            ..Self::default()
        }
    }

    /// With trackers that have these nodes.
    fn with_copy(mut self, nodes: impl IntoIterator<Item = u8>) -> Self {
        let nodes = nodes.into_iter().map(node);
        self.copy = nodes.map(|node| (NodeHash::of(&node), node)).collect();
        self
    }

    fn times_asked(&self, number: usize) -> usize {
        let peer = self.members[number].0;
        let asked = self.asked.lock();
        asked.iter().filter(|asked| **asked == peer).count()
    }
}

/// Knows no node.
struct Nothing;

impl NodeSource for Nothing {
    fn node(&self, _hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
        Ok(None)
    }
}

/// A node of one row.
fn node(number: u8) -> Vec<u8> {
    let path = TreePath::parse(format!("folder {number}").as_bytes()).unwrap();
    let version = Version {
        dot: Dot {
            writer: WriterNumber(1),
            sequence: 1,
        },
        time: HybridTime(5),
        entry: Entry::new(Kind::Directory, 0o755, 0, 0, Timestamp(5)),
        moved: None,
    };
    let edits = [(Key::of_path(&path).unwrap(), Versions::new(vec![version]))];
    let Applied { mut nodes, .. } = apply(&Nothing, empty_root(), &edits.into()).unwrap();
    nodes.pop().unwrap().1
}

fn known() -> &'static BTreeMap<NodeHash, Vec<u8>> {
    static KNOWN: OnceLock<BTreeMap<NodeHash, Vec<u8>>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let nodes = (1..=100).map(node);
        nodes.map(|node| (NodeHash::of(&node), node)).collect()
    })
}

fn hashes(count: u8) -> Vec<NodeHash> {
    (1..=count).map(|n| NodeHash::of(&node(n))).collect()
}

fn invalid() -> Vec<u8> {
    b"no node at all".to_vec()
}

impl Askable for Company {
    fn members(&self) -> Vec<PeerId> {
        self.members.iter().map(|(peer, _)| *peer).collect()
    }

    fn ask(&self, peer: PeerId, nodes: Vec<NodeHash>) -> BoxFuture<'_, Said> {
        self.asked.lock().push(peer);
        let manner = self.members.iter().find(|member| member.0 == peer);
        let manner = manner.unwrap().1;
        async move {
            let give = |hash: &NodeHash| known().get(hash).cloned().unwrap_or_default();
            let mut given: Vec<_> = nodes.iter().map(give).collect();
            match manner {
                Manner::All => {}
                Manner::One => given.truncate(1),
                Manner::Far if nodes.len() > 16 => return Said::TooLate,
                Manner::Far => {}
                Manner::Busy => return Said::Nothing,
                Manner::Silent => std::future::pending().await,
                Manner::Empty => given.iter_mut().for_each(Vec::clear),
                Manner::Other => given[0] = node(200),
                Manner::TooMany => given.push(node(200)),
                Manner::Invalid => given[0] = invalid(),
            }
            Said::Nodes(given)
        }
        .boxed()
    }

    fn ask_trackers(&self, nodes: Vec<NodeHash>) -> BoxFuture<'_, Vec<Vec<u8>>> {
        self.copy_asked.lock().push(nodes.len());
        let found = nodes.iter().filter_map(|hash| self.copy.get(hash).cloned());
        std::future::ready(found.collect()).boxed()
    }

    fn blame(&self, peer: PeerId, reason: &str) {
        self.blamed.lock().push((peer, reason.to_owned()));
    }
}

async fn fetched_of(
    company: &Company,
    slow: &Slow,
    wanted: Vec<NodeHash>,
    within: Duration,
) -> (usize, Duration) {
    let events = broadcast::Sender::new(1);
    let start = Instant::now();
    let mut fetch = Fetch::new(company, slow, wanted);
    let run = fetch.run(events.subscribe());
    let _ = tokio::time::timeout(within, run).await;
    (fetch.got.len(), start.elapsed())
}

async fn fetched(company: &Company, slow: &Slow, count: u8) -> (usize, Duration) {
    fetched_of(company, slow, hashes(count), Duration::from_secs(10)).await
}

#[tokio::test]
async fn members_that_say_nothing_delay_a_fetch_by_moments() {
    let company = Company::new(&[Manner::Silent, Manner::Busy, Manner::Silent, Manner::All]);
    let (got, took) = fetched(&company, &Slow::default(), 20).await;
    assert_eq!(got, 20);
    assert!((PATIENCE..NODES_WITHIN).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_member_that_gives_one_node_at_a_time_is_not_asked_again() {
    let company = Company::new(&[Manner::One, Manner::All]);
    let (got, _) = fetched(&company, &Slow::default(), 50).await;
    assert_eq!(got, 50);
    assert_eq!(company.times_asked(0), 1);
}

#[tokio::test]
async fn who_was_too_slow_is_asked_for_less() {
    let company = Company::new(&[Manner::Far]);
    let slow = Slow::default();
    let moment = Duration::from_millis(100);
    assert_eq!(fetched_of(&company, &slow, hashes(100), moment).await.0, 0);
    assert_eq!(fetched(&company, &slow, 100).await.0, 100);
}

#[tokio::test]
async fn who_was_too_slow_is_asked_last() {
    let company = Company::new(&[Manner::All, Manner::All]);
    let slow = Slow::default();
    slow.note(company.members[0].0);
    fetched(&company, &slow, 10).await;
    assert_eq!((company.times_asked(0), company.times_asked(1)), (0, 1));
}

#[tokio::test]
async fn who_gives_what_it_is_asked_for_is_asked_again_after_the_others() {
    let company = Company::new(&[Manner::All, Manner::All]);
    let slow = Slow::default();
    let mut fetch = Fetch::new(&company, &slow, hashes(10));
    let first = company.members[0].0;
    let judged = judge(&hashes(4), (1..=4).map(node).collect());
    fetch.take(first, Ok((4, judged)));
    assert_eq!(fetch.next(), Some(company.members[1].0));
    fetch.done.insert(company.members[1].0);
    assert_eq!(fetch.next(), Some(first));
}

#[tokio::test]
async fn who_sends_something_else_is_blamed_and_the_node_fetched_elsewhere() {
    for manner in [Manner::Other, Manner::TooMany] {
        let company = Company::new(&[manner, Manner::All]);
        let (got, _) = fetched(&company, &Slow::default(), 20).await;
        assert_eq!(got, 20);
        assert_eq!(company.times_asked(0), 1);
        let blamed = company.blamed.lock();
        assert_eq!(blamed.len(), 1);
        assert_eq!(blamed[0].0, company.members[0].0);
        assert!(blamed[0].1.contains("asked for"), "{}", blamed[0].1);
    }
}

#[tokio::test]
async fn who_sends_a_node_that_is_not_valid_is_blamed_and_the_node_handed_on_with_the_others() {
    let company = Company::new(&[Manner::Invalid, Manner::All]);
    let mut wanted = hashes(9);
    // The smallest is the first that is asked for.
    wanted.sort_unstable();
    let bad = NodeHash::of(&invalid());
    let smaller = wanted.iter().filter(|hash| **hash < bad).count();
    wanted.drain(..smaller);
    wanted.insert(0, bad);
    let expected = wanted.len();
    let (got, _) = fetched_of(&company, &Slow::default(), wanted, Duration::from_secs(5)).await;
    assert_eq!(got, expected);
    let blamed = company.blamed.lock();
    assert_eq!(blamed.len(), 1);
    assert!(blamed[0].1.contains("not valid"), "{}", blamed[0].1);
}

#[tokio::test]
async fn a_member_that_has_nothing_is_not_blamed() {
    let company = Company::new(&[Manner::Empty, Manner::Busy, Manner::All]);
    assert_eq!(fetched(&company, &Slow::default(), 20).await.0, 20);
    assert!(company.blamed.lock().is_empty());
    assert!(company.copy_asked.lock().is_empty());
}

#[tokio::test]
async fn trackers_are_asked_at_once_where_nobody_is_connected() {
    let company = Company::default().with_copy(1..=20);
    let (got, _) = fetched(&company, &Slow::default(), 20).await;
    assert_eq!(got, 20);
    assert_eq!(*company.copy_asked.lock(), [20]);
}

#[tokio::test]
async fn trackers_give_what_no_member_has() {
    let company = Company::new(&[Manner::Empty, Manner::Busy]).with_copy(1..=20);
    assert_eq!(fetched(&company, &Slow::default(), 20).await.0, 20);
    // Members that hang are waited for a moment.
    let company = Company::new(&[Manner::Silent]).with_copy(1..=20);
    let (got, took) = fetched(&company, &Slow::default(), 20).await;
    assert_eq!(got, 20);
    assert!(took >= COPY_AFTER, "{took:?}");
}

#[tokio::test]
async fn what_there_is_comes_without_waiting_for_what_nobody_has() {
    let company = Company::new(&[Manner::Empty]).with_copy(1..=15);
    let (got, took) = fetched(&company, &Slow::default(), 20).await;
    assert_eq!(got, 15);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn trackers_are_asked_again_after_growing_pauses_while_nothing_is_had() {
    let company = Company::default();
    let within = COPY_AGAIN_MIN * 5 / 2;
    let (got, _) = fetched_of(&company, &Slow::default(), hashes(5), within).await;
    assert_eq!(got, 0);
    // At once, and a second later, but not two seconds after that.
    let asked = company.copy_asked.lock().len();
    assert!((1..=2).contains(&asked), "{asked}");
}

#[tokio::test]
async fn only_who_answers_and_has_none_denies_that_there_are_nodes() {
    for (manners, denied) in [
        (&[Manner::Empty, Manner::Silent][..], true),
        (&[Manner::Silent, Manner::Busy], false),
        (&[], false),
    ] {
        let company = Company::new(manners);
        let slow = Slow::default();
        let events = broadcast::Sender::new(1);
        let mut fetch = Fetch::new(&company, &slow, hashes(3));
        let run = fetch.run(events.subscribe());
        let _ = tokio::time::timeout(Duration::from_secs(1), run).await;
        assert!(fetch.got.is_empty());
        assert_eq!(fetch.denied, denied);
    }
}
