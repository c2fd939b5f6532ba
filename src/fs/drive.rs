//! Waits for what operations need, then has them done: the only place where an operation meets the network.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    core::{Core, Fail, Need},
    errno::FsError,
    interrupt,
    live::LiveState,
    publish::blocking,
};
use crate::{
    awake,
    store::{Shortage, StoreError},
};

/// How often an operation may need yet something else: deep trees take a few rounds, each round makes progress.
const ROUNDS_MAX: u32 = 256;
/// Room is looked for at least so long, however short reads may wait: it takes 2 s to tell that nothing refers to a content, and a
/// search may have begun already.
const ROOM_WITHIN_MIN: Duration = Duration::from_secs(20);
/// For how long it holds that there is no room, unless something is removed here.
const NO_ROOM_FOR: Duration = Duration::from_secs(2);
/// How often it is looked whether there is room meanwhile: what gets published stands in two places, but for a moment.
const ROOM_AGAIN: Duration = Duration::from_millis(500);

/// Provides what an operation needs, repeats it, and so on until it answers. Each wait has the mount's deadline; a fatal
/// signal to the process `pid` ends it at once.
pub(crate) async fn drive<T: Send + 'static>(
    core: &Arc<Core>,
    pid: u32,
    mut need: Need,
    mut operation: impl FnMut(&Arc<Core>) -> Result<T, Fail> + Send + 'static,
) -> Result<T, FsError> {
    for _ in 0..ROUNDS_MAX {
        let bytes = match &need {
            Need::Bytes(object, bytes, _) => Some((*object, bytes.clone())),
            _ => None,
        };
        tokio::select! {
            provided = core.provide(need) => provided?,
            () = interrupt::fatal_signal(pid) => return Err(FsError::Interrupted),
        }
        let is_in_memory = bytes.is_some_and(|(object, bytes)| core.store.is_shown(&object, bytes));
        let answer = if is_in_memory {
            // Only reads need bytes. This one waits for no disk, and takes no longer than another thread does to wake up.
            operation(core)
        } else {
            let with = core.clone();
            let (back, answer) = tokio::task::spawn_blocking(move || {
                let answer = operation(&with);
                (operation, answer)
            })
            .await
            .map_err(|_| FsError::Stopping)?;
            operation = back;
            answer
        };
        match answer {
            Ok(answer) => return Ok(answer),
            Err(Fail::Error(error)) => return Err(error),
            Err(Fail::Need(next)) => need = next,
        }
    }
    Err(FsError::Stuck)
}

impl Core {
    /// Waits until the need is met; an error at the deadline.
    pub(super) async fn provide(self: &Arc<Self>, need: Need) -> Result<(), FsError> {
        match need {
            Need::Head => {
                awake::undisturbed(
                    async || match self.tree.wait_head(self.options.wait).await {
                        true => Ok(()),
                        false => Err(FsError::NoHead),
                    },
                )
                .await
            }
            Need::Nodes(nodes) => {
                let fetch = async || self.tree.fetch(nodes.clone(), self.options.wait).await;
                Ok(awake::undisturbed(fetch).await?)
            }
            Need::Bytes(object, bytes, path) => {
                let label = path.to_string();
                let outcome = self.bring.ensure(object, bytes.clone(), &label).await;
                outcome.map_err(|error| {
                    tracing::warn!(path = %label, ?bytes, content = %object.content, %error, "read failed");
                    error.into()
                })
            }
            Need::Room(why, bytes) => self.provide_room(why, bytes).await,
            Need::Move => {
                self.wait_while(self.options.wait, || !self.moving.lock().is_empty())
                    .await;
                Ok(())
            }
            Need::Import(number) => {
                let is_so = || self.with_live(number, |live| live.importing) == Some(true);
                self.wait_while(self.options.wait, is_so).await;
                Ok(())
            }
            Need::Entry(number) => {
                let core = self.clone();
                blocking(move || core.publish_now(number)).await?;
                let waits = |live: &mut LiveState| live.fresh && live.failures == 0;
                let is_so = || self.with_live(number, waits) == Some(true);
                self.wait_while(self.options.wait, is_so).await;
                Ok(())
            }
            Need::Names => self.settle_names().await,
            Need::Publication(number, within) => {
                let is_so = || self.with_live(number, |live| live.is_dirty()) == Some(true);
                self.wait_while(within, is_so).await;
                Ok(())
            }
        }
    }

    /// Makes room. What may go is found out with the other members; if that is nothing, there is no room, and for a while none
    /// is looked for: the kernel may have many pages left that it is to write.
    async fn provide_room(&self, why: Shortage, bytes: u64) -> Result<(), FsError> {
        let is_recent = |at: Instant| at.elapsed() < NO_ROOM_FOR;
        let no_room = || FsError::from(StoreError::NoRoom { why, bytes });
        let make = async || {
            let store = self.store.clone();
            let made = tokio::task::spawn_blocking(move || store.make_room(bytes)).await;
            Ok::<_, FsError>(made.map_err(|_| FsError::Stopping)??)
        };
        let search = async {
            while !make().await? {
                if self.no_room.lock().is_some_and(is_recent) {
                    return Err(no_room());
                }
                let mut searching = std::pin::pin!(self.store.search_room());
                let found = loop {
                    tokio::select! {
                        found = &mut searching => break found,
                        () = tokio::time::sleep(ROOM_AGAIN) => if make().await? {
                            return Ok(());
                        },
                    }
                };
                // What a search found that was under way is left out of the one that was waited for.
                if !found && !make().await? {
                    return Err(no_room());
                }
            }
            Ok(())
        };
        let within = self.options.wait.max(ROOM_WITHIN_MIN);
        let made = tokio::time::timeout(within, search).await;
        let made = made.unwrap_or_else(|_| Err(no_room()));
        let mut since = self.no_room.lock();
        *since = match made {
            Ok(()) => None,
            Err(_) => since.filter(|at| is_recent(*at)).or(Some(Instant::now())),
        };
        drop(since);
        made
    }

    /// Puts a file (and all changes of names, if there is nothing of the file itself to put) on disk.
    pub(super) async fn sync(
        self: &Arc<Self>,
        number: Option<u64>,
        pid: u32,
    ) -> Result<(), FsError> {
        if let Some(number) = number {
            let need = Need::Import(number);
            if drive(self, pid, need, move |core| core.fsync_live(number)).await? {
                return Ok(());
            }
        }
        self.settle_names().await?;
        let core = self.clone();
        let settled = tokio::task::spawn_blocking(move || core.store.settle()).await;
        Ok(settled.map_err(|_| FsError::Stopping)??)
    }

    /// Returns once it is not so any more, by something that [`Core::published`] counts, or the time is up.
    async fn wait_while(&self, within: Duration, is_so: impl Fn() -> bool) {
        let mut ended = self.published.subscribe();
        let deadline = tokio::time::Instant::now() + within;
        while is_so() {
            match tokio::time::timeout_at(deadline, ended.changed()).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    }
}
