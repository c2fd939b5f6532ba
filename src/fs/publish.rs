//! From a file that was written to an entry that the cluster sees.
//!
//! A live file is published when its last writer has closed it, or after a quiet period. The steps: holes are filled from the
//! content below, the staging file becomes an object, the entry is changed, and once that is on disk the staging file and its
//! journal record go. Until then a crash finds the record and starts again. After a failure it is tried again, later and later;
//! nothing is given up.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use super::{
    apart::{self, next_hole},
    core::{Core, Fail, Need},
    drive::drive,
    errno::FsError,
    live::{Live, LiveState, Staging},
    overlay::{Overlay, Source},
};
use crate::{
    content::{self, BLOCK_BYTES, BlockSet, Object},
    linux,
    manifest::{Dot, Entry, HybridTime, Kind, Linked, Shown, TreePath},
    node::namespace::Edit,
    store::{StagingId, StoreError},
};

/// An open file is published when nothing was written to it for so long.
const QUIET: Duration = Duration::from_secs(5);
/// How often to look for files that became quiet or are to be tried again.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often what was written is journaled, so that a process which is killed loses no more than this.
const JOURNAL_EVERY: Duration = Duration::from_secs(2);
/// Publications at once: enough to keep the disk busy while some wait for the network.
pub(super) const AT_ONCE: usize = 16;
/// Files up to this size are published many at a time.
const QUICK_BYTES_MAX: u64 = 1024 * 1024;
/// Holes are filled in portions of this size, so that writers get their turn between them.
const FILL_BYTES: u64 = 1024 * 1024;
/// Files that are closed shortly after others were published are published together: nobody sees them sooner, as heads are
/// no closer to each other than that.
const LOT: Duration = Duration::from_millis(20);
/// Publications that end shortly after each other are put on disk together.
const GATHER: Duration = Duration::from_millis(100);
/// Waits after failures: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How many there are for this process: to find out, files are read.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));
/// How often what turns out damaged, or goes, before it is copied is brought anew.
const BRINGS_MAX: u32 = 3;
/// How often committing an entry may need further nodes of the manifest.
const ROUNDS_MAX: u32 = 256;

/// Publishes what is due, and journals what is being written, for as long as the mount lives.
pub(crate) async fn publisher(core: Arc<Core>) {
    // However long a lot takes to publish, what is being written is journaled meanwhile.
    tokio::select! {
        () = publish_due(&core) => {}
        () = journal_now_and_then(&core) => {}
    }
}

/// Returns when the process ends.
async fn journal_now_and_then(core: &Arc<Core>) {
    let mut is_failing = false;
    loop {
        tokio::time::sleep(JOURNAL_EVERY).await;
        let journaling = core.clone();
        let Ok(outcome) = blocking(move || journaling.journal_written()).await else {
            return;
        };
        if let Err(error) = &outcome
            && !is_failing
        {
            // Said once; those who write are told by `close`.
            tracing::warn!(%error, "the journal could not be written; trying again");
        }
        is_failing = outcome.is_err();
        let now = Instant::now();
        core.listings.lock().forget_old(now);
        core.absent.lock().forget_old(now);
    }
}

/// Returns when the process ends.
async fn publish_due(core: &Arc<Core>) {
    let mut published = Instant::now();
    loop {
        // Either outcome means: look.
        let _ = tokio::time::timeout(LOOK_EVERY, core.wake.notified()).await;
        tokio::time::sleep_until((published + LOT).into()).await;
        let looking = core.clone();
        let looked = blocking(move || looking.due(false).into_iter().partition(is_quick)).await;
        let Ok((quick, others)): Result<(Vec<_>, Vec<_>), _> = looked else {
            return;
        };
        for live in others {
            let core = core.clone();
            tokio::spawn(async move { core.publish(live).await });
        }
        // What is closed meanwhile is the next lot: an archive that is unpacked is published by the dozen.
        if !quick.is_empty() {
            core.publish_quick(quick).await;
            published = Instant::now();
        }
    }
}

/// Puts publications on disk and removes their staging files, for as long as the mount lives.
pub(crate) async fn settler(core: Arc<Core>) {
    loop {
        core.unsettled.notified().await;
        tokio::time::sleep(GATHER).await;
        if let Err(error) = core.settle(false).await {
            tracing::warn!(%error, "published files could not be put on disk yet");
            tokio::time::sleep(RETRY_FIRST).await;
            core.unsettled.notify_one();
        }
    }
}

/// Hashes what is being written, for as long as the mount lives.
pub(crate) async fn hasher(core: Arc<Core>) {
    loop {
        core.ripened.notified().await;
        let hashing = core.clone();
        if blocking(move || hashing.hash_ripe()).await.is_err() {
            return;
        }
    }
}

impl Core {
    /// Hashes what is ripe of the files that are being written.
    fn hash_ripe(&self) {
        loop {
            let next = self.ripe.lock().pop_first();
            let Some(number) = next else { return };
            if let Some(live) = self.live(number) {
                while hash_portion(&live) {}
            }
        }
    }

    /// Journals every file that is being written. One that is busy is left for the next time.
    pub(super) fn journal_written(&self) -> Result<(), StoreError> {
        let lives: Vec<_> = self.lives.lock().values().cloned().collect();
        let mut outcome = Ok(());
        for live in lives {
            if let Some(mut state) = live.state.try_lock()
                && !state.done
            {
                outcome = outcome.and(self.journal_soon(live.number, &mut state));
            }
        }
        outcome
    }

    /// Live files that are to be published now, marked as taken. `all`: those that are still being written, too.
    pub(super) fn due(&self, all: bool) -> Vec<Arc<Live>> {
        let now = Instant::now();
        let lives: Vec<_> = self.lives.lock().values().cloned().collect();
        let mut due = Vec::new();
        for live in lives {
            // One that is busy is looked at the next time.
            let state = match all {
                true => Some(live.state.lock()),
                false => live.state.try_lock(),
            };
            let Some(mut state) = state else { continue };
            if state.publishing || state.done {
                continue;
            }
            if self.may_end(live.number, &state) {
                self.end_writing(live.number, &mut state);
                continue;
            }
            let is_ripe =
                all || state.hurry || state.writers == 0 || state.quiet_since + QUIET <= now;
            let may_try = all || state.retry_at.is_none_or(|at| at <= now);
            // A new file that is open but empty so far has nothing to tell yet.
            let is_wanted = state.writers == 0 || state.hurry;
            let has_news = state.version != state.published || (state.fresh && is_wanted);
            if is_ripe && may_try && has_news && !state.unlinked {
                state.publishing = true;
                due.push(live.clone());
            }
        }
        due
    }

    /// Publishes a file that [`Core::due`] has named.
    pub(super) async fn publish(self: &Arc<Self>, live: Arc<Live>) {
        let outcome = {
            // Never closed.
            let _permit = self.publications.acquire().await;
            self.try_publish(&live).await
        };
        self.end_publication(&live, outcome);
    }

    /// Publishes small files that [`Core::due`] has named, shared out among a few threads: to hand each over by itself
    /// takes as long as to publish it.
    async fn publish_quick(self: &Arc<Self>, lives: Vec<Arc<Live>>) {
        // The other half of the processors is left to those who make the next ones.
        let threads = (*PROCESSORS / 2).clamp(1, AT_ONCE);
        let portion = lives.len().div_ceil(threads).max(1);
        let portions = lives.chunks(portion).map(|portion| async move {
            let (core, lives) = (self.clone(), portion.to_vec());
            let others = blocking(move || {
                let is_other = |live: &Arc<Live>| {
                    // Whoever was woken on this processor meanwhile does not wait for all of them.
                    std::thread::yield_now();
                    !core.publish_at_once(live)
                };
                lives.into_iter().filter(is_other).collect::<Vec<_>>()
            });
            match others.await {
                Ok(others) => others,
                // They stopped half-way.
                Err(_) => portion.to_vec(),
            }
        });
        for live in futures::future::join_all(portions).await.concat() {
            let core = self.clone();
            tokio::spawn(async move { core.publish(live).await });
        }
    }

    /// Publishes a file that somebody waits for, without waiting for the next lot, if nothing of it has to be fetched and it is
    /// not on its way: `git` gives each file that it makes a second name, one after the other.
    pub(super) fn publish_now(&self, number: u64) {
        let Some(live) = self.live(number) else {
            return;
        };
        {
            let mut state = live.state.lock();
            if state.publishing || state.done || state.unlinked || !is_whole(&state) {
                return;
            }
            state.publishing = true;
        }
        if !self.publish_at_once(&live) {
            live.state.lock().publishing = false;
            self.wake.notify_one();
        }
    }

    /// False if publishing it needs something that isn't here.
    fn publish_at_once(&self, live: &Live) -> bool {
        let outcome = self.import(live).map_err(Fail::from).and_then(|imported| {
            imported.map_or(Ok(()), |(object, version)| {
                self.commit(live, object, version)
            })
        });
        match outcome {
            Ok(()) => self.end_publication(live, Ok(())),
            Err(Fail::Error(error)) => self.end_publication(live, Err(error)),
            Err(Fail::Need(_)) => return false,
        }
        true
    }

    fn end_publication(&self, live: &Live, outcome: Result<(), FsError>) {
        {
            let mut state = live.state.lock();
            state.publishing = false;
            match outcome {
                Ok(()) => {
                    state.failures = 0;
                    state.retry_at = None;
                }
                Err(error) => {
                    let wait = RETRY_FIRST * 2u32.saturating_pow(state.failures.min(6));
                    state.failures += 1;
                    state.retry_at = Some(Instant::now() + wait.min(RETRY_MAX));
                    if matches!(error, FsError::Store(StoreError::NoRoom { .. })) {
                        // May hold for many files, and the store says it.
                        tracing::debug!(path = %state.path, %error, "the file stays unpublished for now");
                    } else {
                        tracing::warn!(path = %state.path, %error, "the file stays unpublished for now");
                    }
                }
            }
            if !state.done && self.may_end(live.number, &state) {
                self.end_writing(live.number, &mut state);
            }
        }
        self.published.send_modify(|ended| *ended += 1);
        self.wake.notify_one();
    }

    async fn try_publish(self: &Arc<Self>, live: &Arc<Live>) -> Result<(), FsError> {
        let (object, version) = match self.make_apart(live).await? {
            apart::Outcome::Made(object, version) => (object, version),
            apart::Outcome::Later => return Ok(()),
            apart::Outcome::No => match self.make_whole(live).await? {
                Some(made) => made,
                None => return Ok(()),
            },
        };
        for _ in 0..ROUNDS_MAX {
            let (core, live) = (self.clone(), live.clone());
            match blocking(move || core.commit(&live, object, version)).await? {
                Ok(()) => return Ok(()),
                Err(Fail::Error(error)) => return Err(error),
                Err(Fail::Need(need)) => self.provide(need).await?,
            }
        }
        Err(FsError::Stuck)
    }

    /// Makes the content of a file out of all its bytes, which are fetched as far as they are not here. `None` as for [`Core::import`].
    async fn make_whole(
        self: &Arc<Self>,
        live: &Arc<Live>,
    ) -> Result<Option<(Object, u64)>, FsError> {
        loop {
            let hole = next_hole(&live.state.lock(), &BlockSet::default());
            let Some((base, hole, path)) = hole else {
                break;
            };
            self.fill_hole(live, base, hole, &path).await?;
        }
        let (core, with) = (self.clone(), live.clone());
        blocking(move || core.import(&with)).await?
    }

    /// Brings bytes of the base, and copies what of them still shows into the staging file.
    pub(super) async fn fill_hole(
        self: &Arc<Self>,
        live: &Arc<Live>,
        base: Object,
        hole: Range<u64>,
        path: &TreePath,
    ) -> Result<(), FsError> {
        let label = path.to_string();
        let mut brings = 0;
        loop {
            self.bring.ensure_kept(base, hole.clone(), &label).await?;
            brings += 1;
            let (core, live, hole) = (self.clone(), live.clone(), hole.clone());
            match blocking(move || core.fill(&live, base, hole)).await? {
                Err(FsError::Store(StoreError::NoRoom { why, bytes })) => {
                    return self.provide(Need::Room(why, bytes)).await;
                }
                Err(FsError::Store(StoreError::Absent(_))) if brings < BRINGS_MAX => {}
                filled => return filled,
            }
        }
    }

    /// Copies what of a hole still shows the base into the staging file.
    fn fill(&self, live: &Live, base: Object, hole: Range<u64>) -> Result<(), FsError> {
        let mut state = live.state.lock();
        if state.base != base || state.unlinked {
            return Ok(());
        }
        let staging = state.staging(&self.store)?;
        for (piece, source) in state.overlay.pieces(hole) {
            if source != Source::Base {
                continue;
            }
            let copy = || Ok(self.store.copy_to(&base, piece.clone(), &staging));
            let bytes = piece.end - piece.start;
            self.store.grow(&staging, bytes, copy)??;
            // Of blocks that are whole the hashes are known.
            let blocks = piece.start.div_ceil(BLOCK_BYTES)..piece.end / BLOCK_BYTES;
            let hashes = match blocks.is_empty() {
                true => None,
                false => self.store.leaves(&base, blocks.clone())?,
            };
            state.overlay.write(piece);
            for (block, hash) in blocks.zip(hashes.unwrap_or_default()) {
                state.overlay.hashed.know(block, hash);
            }
        }
        Ok(())
    }

    /// Turns the staging file into an object, which becomes the base of whatever is written next. `None` when there is
    /// nothing to publish (any more, or yet). Writers wait meanwhile.
    fn import(&self, live: &Live) -> Result<Option<(Object, u64)>, FsError> {
        let _syncing = live.syncing.lock();
        let mut state = live.state.lock();
        if state.unlinked || state.done {
            return Ok(None);
        }
        let version = state.version;
        let size = state.overlay.size();
        if state.overlay.is_base(state.base.size) {
            // A staging file that nothing shows of (a copy by reference) has a record in the journal all the same.
            state.take_imported();
            return Ok(Some((state.base, version)));
        }
        if !is_whole(&state) {
            return Ok(None);
        }
        let object = if size == 0 {
            Object::empty()
        } else {
            state.make_staging(&self.store, size)?;
            self.journal_soon(live.number, &mut state)?;
            let id = state.staging.as_ref().and_then(|staging| staging.id);
            let id = id.ok_or(FsError::Stuck)?;
            state.importing = true;
            let known = std::mem::take(&mut state.overlay.hashed).into_leaves();
            drop(state);
            let imported = self.store.import(id, size, &known);
            state = live.state.lock();
            state.importing = false;
            self.published.send_modify(|steps| *steps += 1);
            if imported.is_err()
                && let Some(staging) = &mut state.staging
            {
                staging.is_shared = !staging.is_small;
            }
            imported?
        };
        state.base = object;
        state.overlay = Overlay::over(object.size);
        state.take_imported();
        Ok(Some((object, version)))
    }

    /// Changes the entry. From now on the content is what the inode is.
    fn commit(&self, live: &Live, object: Object, version: u64) -> Result<(), Fail> {
        let _order = self.order.write();
        let _held = self.tree.hold();
        let mut state = live.state.lock();
        if state.unlinked || state.done {
            let imported = std::mem::take(&mut state.imported);
            if !state.is_replaced {
                self.settle_soon(imported);
            }
            return Ok(());
        }
        let path = self.name_of(live.number, &state)?;
        let current = self.shown(&path)?;
        if let Some(current) = &current
            && current.entry.kind == Kind::File(state.agreed)
        {
            let told = state.facts();
            state.adopt(&current.entry);
            if state.facts() != told {
                self.tell(path.clone());
            }
        }
        let entry = state.entry_with(object);
        // The time that the kernel was told; later than what it replaces, if that is somebody else's. But what is left from another
        // process is no later than what others have written since.
        let is_seen = |current: &Shown| current.seen.iter().all(|dot| state.seen.contains(dot));
        let written = match &current {
            Some(current) if state.began.is_some() || is_seen(current) => state
                .changed
                .max(HybridTime(current.time.0.saturating_add(1))),
            _ => state.changed,
        };
        let mut edits = Vec::new();
        let mut seen = state.seen.clone();
        let link = current.as_ref().and_then(|current| current.link.clone());
        let link = link.filter(|link| state.other_than != Some(link.file));
        let mut link = link.map(|link| {
            // Of a file that got another name meanwhile nothing is known to have been seen of that.
            let own = state.link.clone().filter(|own| own.file == link.file);
            let seen = own.map_or(Vec::new(), |own| own.seen);
            (link, seen)
        });
        match &current {
            Some(current) if current.entry.kind == Kind::File(state.agreed) => {
                // Still what the writer began with, or an earlier publication of the same: nothing concurrent.
                seen.extend(&current.seen);
                seen.sort_unstable();
                seen.dedup();
                if let Some((there, seen)) = &mut link {
                    seen.extend(&there.seen);
                    seen.sort_unstable();
                    seen.dedup();
                }
            }
            Some(current) if current.entry == entry => {}
            Some(_) => {
                // Somebody else's change: a copy of it will appear beside this one, and the kernel must hear of it.
                self.tell(path.clone());
            }
            // Gone meanwhile, with its folder perhaps, as the kernel may know: both come back.
            None => self.tell(path.clone()),
        }
        let is_same = |current: &Shown| current.entry == entry;
        let is_there = current.as_ref().is_some_and(is_same) && !state.fresh;
        if let (Some(_), Some(current)) = (&link, &current) {
            // Whatever became of the record, the name goes on being one of the file's.
            seen.clone_from(&current.seen);
        }
        if !is_there {
            let put = |path: TreePath, entry: Entry, seen: &[Dot]| Edit {
                path,
                entry: Some(entry),
                seen: seen.to_vec(),
                held: false,
                written: Some(written),
                moved: None,
            };
            match &link {
                None => edits.push(put(path.clone(), entry.clone(), &seen)),
                Some((there, record_seen)) => {
                    let record = TreePath::of_record(&there.file);
                    edits.push(put(record, entry.clone(), record_seen));
                    edits.push(put(path.clone(), Entry::link(there.file), &seen));
                }
            }
            // After the file's, so that it is the later of the two.
            edits.extend(self.keep_folder_time(&path, written));
            self.change(edits)?;
        }
        if state.began.is_none() {
            self.tell_settled(&path);
        }
        // What it replaced is replaced in the same head.
        let mut done = std::mem::take(&mut state.imported);
        done.append(&mut state.replaced);
        let is_told = state.is_recorded || state.is_durable;
        if is_told && state.version == version && state.overlay.is_base(object.size) {
            // Synced on its way here: the record says what the entry does, and is needed until that is on disk.
            done.extend(state.staging.take().and_then(|staging| staging.id));
            state.is_recorded = false;
        }
        self.note_end(&done);
        self.settle_soon(done);
        let facts = self.facts_after(&path, &entry);
        self.inodes.lock().set_facts(live.number, facts);
        state.path = path;
        state.seen = seen;
        state.link = link.map(|(there, seen)| Linked { seen, ..there });
        state.agreed = object;
        state.began = Some(entry);
        state.published = version;
        state.fresh = false;
        state.other_than = None;
        state.hurry = false;
        // Of a staging file that was begun since, there may be a durable record.
        state.is_durable &= state.staging.is_some();
        Ok(())
    }

    /// The name under which a file is published. One of several may be somebody else's file by now, before the kernel has
    /// heard of it: then another one.
    fn name_of(&self, number: u64, state: &LiveState) -> Result<TreePath, Fail> {
        let mut paths = self.inodes.lock().paths(number);
        if let Some(own) = &state.link {
            for path in &paths {
                let shown = self.shown(path)?;
                let link = shown.as_ref().and_then(|shown| shown.link.as_ref());
                if link.is_some_and(|link| link.file == own.file) {
                    return Ok(path.clone());
                }
            }
        }
        Ok(match paths.is_empty() {
            true => state.path.clone(),
            false => paths.swap_remove(0),
        })
    }

    /// A folder's time is that of its latest change unless it was set after that. Publishing what was written before the
    /// time was set must not undo it (`tar` and `rsync` set folders' times last): such an entry is put again.
    fn keep_folder_time(&self, path: &TreePath, written: HybridTime) -> Option<Edit> {
        let (folder, _) = path.split()?;
        let shown = self.tree.get(&folder).ok()??;
        let is_own = !folder.names().is_empty() && shown.time.0 > 0;
        let is_set = written > shown.time && self.tree.folder_newest(&folder).ok()? <= shown.time;
        (is_own && is_set && shown.entry.kind == Kind::Directory).then_some(Edit {
            path: folder,
            entry: Some(shown.entry),
            seen: shown.seen,
            held: false,
            written: None,
            moved: None,
        })
    }

    /// Has the kernel look anew at what stands at a place once what was changed there is in a head: that may show something
    /// else than the change does until then.
    pub(super) fn tell_settled(&self, path: &TreePath) {
        self.unsure.lock().insert(path.clone());
        self.unsettled.notify_one();
    }

    /// Has staging files removed once what was changed so far is on disk.
    pub(super) fn settle_soon(&self, mut ids: Vec<StagingId>) {
        if !ids.is_empty() {
            self.settling.lock().append(&mut ids);
            self.unsettled.notify_one();
        }
    }

    /// Puts published entries and contents on disk, then removes staging files that are done with. Without `hurry` the entries go into
    /// the heads that are made anyway: a burst of files is no reason for more of them.
    pub(super) async fn settle(self: &Arc<Self>, hurry: bool) -> Result<(), FsError> {
        let ids = std::mem::take(&mut *self.settling.lock());
        let unsure = std::mem::take(&mut *self.unsure.lock());
        if ids.is_empty() && unsure.is_empty() {
            return Ok(());
        }
        let settled = async {
            match hurry {
                true => self.tree.flush().await?,
                false => self.tree.settled().await?,
            }
            for path in &unsure {
                self.tell(path.clone());
            }
            let core = self.clone();
            blocking(move || core.store.settle()).await??;
            Ok(())
        };
        if let Err(error) = settled.await {
            self.settling.lock().extend(ids);
            self.unsure.lock().extend(unsure);
            return Err(error);
        }
        let core = self.clone();
        blocking(move || {
            for id in ids {
                if let Err(error) = core.store.unstage(id) {
                    tracing::warn!(%error, "a staging file could not be removed");
                }
            }
            // Those that were removed may have made room.
            *core.no_room.lock() = None;
        })
        .await
    }

    /// Publishes everything there is, once, files that are still open included, and puts it on disk.
    pub(super) async fn publish_all(self: &Arc<Self>) {
        let mut tried = BTreeSet::new();
        let mut ended = self.published.subscribe();
        loop {
            let looking = self.clone();
            let Ok(due) = blocking(move || looking.due(true)).await else {
                return;
            };
            let (again, first): (Vec<_>, Vec<_>) = due
                .into_iter()
                .partition(|live| tried.contains(&live.number));
            for live in again {
                live.state.lock().publishing = false;
            }
            if first.is_empty() {
                if !self.is_publishing() {
                    break;
                }
                if ended.changed().await.is_err() {
                    break;
                }
                continue;
            }
            tried.extend(first.iter().map(|live| live.number));
            futures::future::join_all(first.into_iter().map(|live| self.publish(live))).await;
        }
        if let Err(error) = self.settle(true).await {
            tracing::warn!(%error, "published files could not be put on disk yet");
        }
    }

    /// Puts what is not published, and the journal records for it, on disk: the next mount takes it up. Of the failures the
    /// first is returned, after all were tried.
    pub(super) async fn keep_unpublished(self: &Arc<Self>) -> Result<(), FsError> {
        let lives: Vec<_> = self.lives.lock().values().cloned().collect();
        let mut outcome = Ok(());
        for live in lives {
            let number = live.number;
            let kept = drive(self, 0, Need::Import(number), move |core| {
                core.fsync_live(number)
            });
            outcome = outcome.and(kept.await.map(|_| ()));
        }
        outcome
    }

    fn is_publishing(&self) -> bool {
        let lives: Vec<_> = self.lives.lock().values().cloned().collect();
        lives.iter().any(|live| live.state.lock().publishing)
    }
}

/// Hashes some blocks of a file that is being written, which goes on meanwhile. False when there is nothing to hash.
fn hash_portion(live: &Live) -> bool {
    let (file, blocks) = {
        let mut state = live.state.lock();
        if state.done || state.importing {
            return false;
        }
        let Some(file) = state.staging.as_ref().map(|staging| staging.file.clone()) else {
            return false;
        };
        let Some(blocks) = state.overlay.take_ripe() else {
            return false;
        };
        (file, blocks)
    };
    let bytes = blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES;
    let hashes = content::hash_blocks(&*file, blocks);
    // What was written so far is synced sooner or later, by `fsync` or to be published.
    linux::begin_writing(&file, bytes);
    let mut state = live.state.lock();
    let is_same = |staging: &Staging| Arc::ptr_eq(&staging.file, &file);
    match hashes {
        Ok(hashes) if state.staging.as_ref().is_some_and(is_same) => {
            state.overlay.hashed.put(&hashes);
            true
        }
        // It was published, or cut off, meanwhile; an error of the disk shows again when all of it is hashed.
        _ => false,
    }
}

/// Whether it is published soon, by itself.
fn is_quick(live: &Arc<Live>) -> bool {
    let state = live.state.lock();
    state.overlay.size() <= QUICK_BYTES_MAX && is_whole(&state)
}

/// Whether nothing of it has to be fetched before it is published.
pub(super) fn is_whole(state: &LiveState) -> bool {
    next_hole(state, &BlockSet::default()).is_none()
}

/// The part of a hole that is filled at a time.
pub(super) fn fill_range(hole: Range<u64>) -> Range<u64> {
    let portion_end = (hole.start / FILL_BYTES + 1) * FILL_BYTES;
    hole.start..hole.end.min(portion_end)
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FsError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| FsError::Stopping)
}
