//! `p2pfs evict`, and the promises without which nothing is evicted.
//!
//! A content goes from here only after another member that has it whole has durably promised to keep it for [`LEASE`], and
//! has given a block chosen at random. What is unpublished, pinned, or promised to others stays.
//!
//! Two members that evict a content at once do not both succeed: from before the question until the blocks are gone a
//! content is *asking* here, and whoever asks for a promise meanwhile is refused, unless its peer id is the smaller one and
//! nothing is being dropped yet: then this side gives way. All of it is decided under one lock, under which promises are
//! recorded too, so a content is never promised and dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt, stream};
use libp2p::PeerId;
use parking_lot::Mutex;
use rand::seq::SliceRandom;

use super::{
    bring::{bytes_in, here},
    walk::{Step, Walk},
};
use crate::{
    content::Object,
    control::{
        ControlError,
        keeping::{EvictReport, FailedReport},
    },
    manifest::TreePath,
    net::proto::{KEPT_MAX, SyncAnswer, SyncRequest},
    node::{Node, conflicts::path_text, run_blocking},
    store::{Store, StoreError},
};

/// For how long others are asked to keep what is evicted here.
pub(super) const LEASE: Duration = crate::transfer::LEASE;
/// Longest promise that is given.
const PROMISE_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a member is given to promise: it writes to its disk first.
const PROMISED_WITHIN: Duration = Duration::from_secs(10);
/// Proofs that are asked for at a time.
const PROOFS_AT_ONCE: usize = 16;
/// How long the count of what is pinned is waited for.
const COUNTED_WITHIN: Duration = Duration::from_secs(20);
/// How long the staging file of what was just published is waited for, and how often it is looked for.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Most kept paths that are named.
const NAMED_MAX: usize = 1000;

/// How far the eviction of a content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Others are being asked to keep it.
    Asking,
    /// Another member was promised it meanwhile: it stays.
    GivenWay,
    /// Its blocks go.
    Dropping,
}

/// The evictions that run here, and the promises that others have.
pub(in crate::node) struct Evictions {
    store: Store,
    phases: Mutex<BTreeMap<Object, Phase>>,
}

impl Evictions {
    pub(in crate::node) fn new(store: Store) -> Self {
        Self {
            store,
            phases: Mutex::default(),
        }
    }

    /// Whether the content may be asked for; from now on it is promised to nobody but who goes first.
    pub(super) fn begin(&self, object: Object) -> Result<bool, StoreError> {
        let mut phases = self.phases.lock();
        if phases.contains_key(&object) || self.store.is_promised(&object, now_s())? {
            return Ok(false);
        }
        phases.insert(object, Phase::Asking);
        Ok(true)
    }

    /// The same for who goes for good, whatever was promised to whom.
    fn begin_leaving(&self, object: Object) -> bool {
        let mut phases = self.phases.lock();
        let is_new = !phases.contains_key(&object);
        phases.entry(object).or_insert(Phase::Asking);
        is_new
    }

    /// Whether it may be dropped now. From now on it is promised to nobody.
    pub(super) fn commit(&self, object: &Object) -> bool {
        match self.phases.lock().get_mut(object) {
            Some(phase @ Phase::Asking) => {
                *phase = Phase::Dropping;
                true
            }
            _ => false,
        }
    }

    fn end(&self, object: &Object) {
        self.phases.lock().remove(object);
    }

    /// Promises a member to keep contents that are whole here; contents and promises are on disk when this returns. `own` is this
    /// node.
    ///
    /// # Errors
    /// Of the store: nothing is promised then.
    pub(in crate::node) fn promise(
        &self,
        own: PeerId,
        peer: PeerId,
        objects: &[Object],
        for_s: u64,
    ) -> Result<Vec<bool>, StoreError> {
        let until_s = now_s().saturating_add(for_s.min(PROMISE_MAX.as_secs()));
        let mut answers = Vec::new();
        for object in objects {
            let mut phases = self.phases.lock();
            let refused = match phases.get(object) {
                Some(Phase::Dropping) => true,
                Some(Phase::Asking) => own.to_bytes() < peer.to_bytes(),
                Some(Phase::GivenWay) | None => false,
            };
            if refused || !self.store.promise(object, until_s)? {
                answers.push(false);
                continue;
            }
            if let Some(phase) = phases.get_mut(object) {
                *phase = Phase::GivenWay;
            }
            answers.push(true);
        }
        // Others drop it now: it must not be lost with the machine. Not under the lock: it is promised already.
        let asked = objects.iter().zip(&mut answers);
        let promised = asked.filter(|(_, promised)| **promised);
        let (contents, answered): (Vec<Object>, Vec<&mut bool>) = promised
            .map(|(object, promised)| (*object, promised))
            .unzip();
        let durable = self.store.make_durable(&contents)?;
        for (answer, durable) in answered.into_iter().zip(durable) {
            *answer = durable;
        }
        Ok(answers)
    }
}

pub(super) fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The contents of a batch; whatever happens to the eviction, they are given free at its end.
pub(in crate::node) struct Running<'a> {
    pub(in crate::node) evictions: &'a Evictions,
    pub(in crate::node) objects: Vec<Object>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        for object in &self.objects {
            self.evictions.end(object);
        }
    }
}

/// Drops what is cached of the contents below the paths.
///
/// # Errors
/// Where nothing stands at one of the paths, or it is not known what is pinned. What can't be dropped is no error: it is told.
pub(in crate::node) async fn evict(
    node: Arc<Node>,
    paths: Vec<TreePath>,
) -> Result<EvictReport, ControlError> {
    if !node.pins.wait_counted(COUNTED_WITHIN).await {
        return Err(ControlError::new(
            "it is not known yet what is pinned: manifest nodes of it could not be had",
        ));
    }
    let mut walk = Walk::start(node.clone(), &paths).await?;
    let mut report = EvictReport::default();
    let mut batch: BTreeMap<Object, TreePath> = BTreeMap::new();
    loop {
        let step = walk.next().await;
        let ended = step.is_none();
        match step {
            Some(Step::File(path, object)) => {
                report.files += 1;
                let here = here(&node, &object).map_err(ControlError::new)?;
                let here = bytes_in(&object, &here);
                let pinned = node.pins.covers(&path)
                    || node.store.is_pinned(&object).map_err(ControlError::new)?;
                if here == 0 {
                    report.not_here_files += 1;
                } else if node.is_unpublished(&path) {
                    kept(&mut report, &path, here, "it is not published yet");
                } else if pinned {
                    kept(&mut report, &path, here, "it is pinned");
                } else {
                    batch.entry(object).or_insert(path);
                }
            }
            Some(Step::Failed(path, reason)) => kept(&mut report, &path, 0, &reason),
            None => {}
        }
        if batch.len() == KEPT_MAX || (ended && !batch.is_empty()) {
            evict_batch(&node, std::mem::take(&mut batch), &mut report).await?;
        }
        if ended {
            return Ok(report);
        }
    }
}

fn kept(report: &mut EvictReport, path: &TreePath, bytes: u64, reason: &str) {
    report.kept_files += 1;
    report.kept_bytes = report.kept_bytes.saturating_add(bytes);
    if report.kept.len() < NAMED_MAX {
        let (path, path_hex) = path_text(path);
        report.kept.push(FailedReport {
            path,
            path_hex,
            reason: reason.to_owned(),
        });
    }
}

async fn evict_batch(
    node: &Arc<Node>,
    batch: BTreeMap<Object, TreePath>,
    report: &mut EvictReport,
) -> Result<(), ControlError> {
    let mut running = Running {
        evictions: &node.evictions,
        objects: Vec::new(),
    };
    let mut reasons: BTreeMap<Object, &str> = BTreeMap::new();
    for object in batch.keys() {
        if node.evictions.begin(*object).map_err(ControlError::new)? {
            running.objects.push(*object);
        } else {
            reasons.insert(*object, "another member was promised that it stays here");
        }
    }
    let held = held_elsewhere(node, &running.objects, PROMISED_WITHIN, &|_| true).await;
    for object in &running.objects {
        if !held.contains(object) {
            reasons.insert(*object, "no other member promised to keep it");
        } else if !node.evictions.commit(object) {
            reasons.insert(*object, "another member evicts it at the same time");
        } else {
            let object = *object;
            match drop_settled(node, object)
                .await
                .map_err(ControlError::new)?
            {
                Some(bytes) => {
                    report.freed_files += 1;
                    report.freed_bytes += bytes;
                }
                None => {
                    reasons.insert(
                        object,
                        "it was pinned or promised meanwhile, is open, or something unpublished has the same content",
                    );
                }
            }
        }
    }
    for (object, reason) in reasons {
        if let Some(path) = batch.get(&object) {
            let here = here(node, &object).map_err(ControlError::new)?;
            kept(report, path, bytes_in(&object, &here), reason);
        }
    }
    Ok(())
}

/// Takes out of `alone`, contents that are whole here, those that another member promised to keep, and proved to have. They are
/// promised to nobody as long as `running` is there.
pub(in crate::node) async fn take_kept_elsewhere(
    node: &Arc<Node>,
    alone: &mut BTreeSet<Object>,
    running: &mut Running<'_>,
) {
    let objects: Vec<Object> = alone.iter().copied().collect();
    for batch in objects.chunks(KEPT_MAX) {
        let begun = batch.iter().copied();
        let begun: Vec<Object> = begun
            .filter(|object| node.evictions.begin_leaving(*object))
            .collect();
        running.objects.extend(&begun);
        for object in held_elsewhere(node, &begun, PROMISED_WITHIN, &|_| true).await {
            if node.evictions.commit(&object) {
                alone.remove(&object);
            }
        }
    }
}

/// Drops a content. One that was published a moment ago still has its staging file, which is waited for.
async fn drop_settled(node: &Arc<Node>, object: Object) -> Result<Option<u64>, StoreError> {
    let deadline = tokio::time::Instant::now() + SETTLED_WITHIN;
    loop {
        let store = node.store.clone();
        let gone = run_blocking(move || store.evict(&object)).await?;
        if gone.is_some() || tokio::time::Instant::now() >= deadline {
            return Ok(gone);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Those of the contents that another member promised to keep, and proved to have where that is needed. Each member is given
/// so long to promise.
pub(super) async fn held_elsewhere(
    node: &Arc<Node>,
    objects: &[Object],
    within: Duration,
    needs_proof: &(dyn Fn(&Object) -> bool + Sync),
) -> Vec<Object> {
    let mut peers = node.net.peers();
    // Who keeps everything anyway comes first, others in no order: one that is silent is not to be the first each time. Who does
    // not know of promises cannot be asked for one.
    peers.retain(|peer| peer.hello.promises);
    peers.shuffle(&mut rand::rng());
    peers.sort_by_key(|peer| !peer.hello.keeps_all);
    let mut left = objects.to_vec();
    let mut held = Vec::new();
    for peer in peers {
        if left.is_empty() {
            break;
        }
        let request = SyncRequest::Keep {
            objects: left.clone(),
            for_s: LEASE.as_secs(),
        };
        let answer = node.net.request(peer.peer, request, within).await;
        let Ok(SyncAnswer::Keep(promised)) = answer else {
            continue;
        };
        let promised = left.iter().zip(promised).filter(|(_, promised)| *promised);
        let promised: Vec<Object> = promised.map(|(object, _)| *object).collect();
        let proofs = stream::iter(promised.into_iter().map(|object| async move {
            let proven = !needs_proof(&object) || node.gives_a_block(peer.peer, object).await;
            proven.then_some(object)
        }));
        let proven: Vec<Object> = proofs
            .buffer_unordered(PROOFS_AT_ONCE)
            .filter_map(|proven| async move { proven })
            .collect()
            .await;
        left.retain(|object| !proven.contains(object));
        held.extend(proven);
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{BLOCK_BYTES, ContentId, Leaves};

    fn one() -> (tempfile::TempDir, Store, Object) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let bytes = vec![7; 2 * BLOCK_BYTES as usize + 5];
        let (id, file) = store.stage().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        let object = store
            .import(id, bytes.len() as u64, &Leaves::default())
            .unwrap();
        store.unstage(id).unwrap();
        store.flush().unwrap();
        (dir, store, object)
    }

    /// The smaller peer id and the larger one.
    fn two() -> (PeerId, PeerId) {
        let (a, b) = (PeerId::random(), PeerId::random());
        if a.to_bytes() < b.to_bytes() {
            (a, b)
        } else {
            (b, a)
        }
    }

    #[test]
    fn of_two_that_evict_at_once_one_gives_way_and_the_other_is_refused() {
        let (small, large) = two();
        let ((_d1, s1, object), (_d2, s2, _)) = (one(), one());
        let (at_small, at_large) = (Evictions::new(s1), Evictions::new(s2));
        assert!(at_small.begin(object).unwrap() && at_large.begin(object).unwrap());
        let asked = |at: &Evictions, own, by| at.promise(own, by, &[object], 60).unwrap()[0];
        assert!(!asked(&at_small, small, large));
        assert!(asked(&at_large, large, small));
        assert!(at_small.commit(&object));
        assert!(!at_large.commit(&object));
        // Nor is anything promised that is being dropped, or promised already.
        assert!(!asked(&at_small, small, large));
        at_large.end(&object);
        assert!(!at_large.begin(object).unwrap());
    }

    #[test]
    fn only_what_is_whole_is_promised_and_a_promise_outlives_the_process_but_not_its_lease() {
        let (small, large) = two();
        let (dir, store, object) = one();
        let other = Object {
            content: ContentId([1; 32]),
            size: 5,
        };
        let evictions = Evictions::new(store.clone());
        let answers = evictions
            .promise(small, large, &[other, object], 60)
            .unwrap();
        assert_eq!(answers, [false, true]);
        drop((evictions, store));
        let store = Store::open(dir.path()).unwrap();
        assert!(store.is_promised(&object, now_s()).unwrap());
        assert!(!store.is_promised(&object, now_s() + 61).unwrap());
        assert!(!store.is_promised(&other, now_s()).unwrap());
    }

    #[test]
    fn what_is_promised_survives_the_machine_going_down() {
        let (small, large) = two();
        let (dir, store, _) = one();
        let bytes = vec![9; BLOCK_BYTES as usize];
        let object = Object {
            content: crate::content::hash_bytes(&bytes),
            size: BLOCK_BYTES,
        };
        let range = crate::content::verify_range(object, 0..1, &bytes).unwrap();
        store.insert(&range).unwrap();
        let evictions = Evictions::new(store.clone());
        let promised = evictions.promise(small, large, &[object], 60).unwrap();
        assert_eq!(promised, [true]);
        // What the disk has now, with another name for the boot.
        let copy = tempfile::tempdir().unwrap();
        let state = copy.path().join("state");
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([dir.path(), &state])
            .status();
        assert!(copied.unwrap().success());
        drop((evictions, store));
        {
            let db = sled::open(state.join("index")).unwrap();
            let meta = db.open_tree("meta").unwrap();
            meta.insert("boot", "another").unwrap();
            db.flush().unwrap();
        }
        let name = format!("{}-{}", object.content, object.size);
        let first = format!("{:02x}", object.content.0[0]);
        std::fs::write(state.join("objects").join(first).join(name), [0; 9]).unwrap();
        let store = Store::open(&state).unwrap();
        // It is not looked at again: it was synced.
        assert_eq!(
            store.presence(&object).unwrap(),
            crate::store::Presence::Complete
        );
        assert!(store.is_promised(&object, now_s()).unwrap());
    }

    #[test]
    fn an_evicted_content_is_gone_with_its_files_and_its_bytes_are_given_back() {
        let (dir, store, object) = one();
        // The staging file, which has the same bytes, is removed a moment later.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let evicted = loop {
            let evicted = store.evict(&object).unwrap();
            if evicted.is_some() || std::time::Instant::now() > deadline {
                break evicted;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(evicted, Some(object.size));
        assert_eq!(store.usage().unwrap().objects_bytes, 0);
        assert_eq!(
            store.presence(&object).unwrap(),
            crate::store::Presence::Absent
        );
        drop(store);
        let files = walkdir::WalkDir::new(dir.path().join("objects"));
        let left = files
            .into_iter()
            .filter(|file| file.as_ref().unwrap().file_type().is_file());
        let left: Vec<_> = left.map(|file| file.unwrap().into_path()).collect();
        assert!(left.is_empty(), "{left:?}");
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(
            store.presence(&object).unwrap(),
            crate::store::Presence::Absent
        );
    }
}
