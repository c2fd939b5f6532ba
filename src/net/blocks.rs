//! `/p2pfs/blocks/1`: ranges of contents.
//!
//! A requester keeps up to [`LANES`] streams open to a peer and has up to [`ASKED_MAX`] requests on its way in each, so that
//! no round trip is ever waited for. An answer is a small CBOR head, tied to its request by number, and for data the raw
//! bytes after it. The requester knows the length before the first byte, and allocates it only for a request of its own
//! that somebody still waits for; what nobody waits for any more is read and thrown away, so the stream stays in step.
//!
//! The answering side works on a bounded number of requests for each peer and for all of them; it says
//! [`BlockAnswer::Busy`] rather than queue beyond that. It ends a stream on which an answer is not taken in time, and is busy
//! for a while for a peer that does so again, so that who takes its answers byte by byte does not keep their room from others.
//! Slow lines are met by the requester, which asks for what it can take in a second.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::buffers::Buffer;

use super::{
    framing::{self, FrameError},
    limits::Accepted,
    peers::{Peer, Shared, Traffic},
    proto::{
        BATCH_BYTES_MAX, BLOCK_ANSWER_BYTES_MAX, BLOCKS, BatchRequest, BlockAnswer, BlockCall,
        BlockHead, BlockRequest,
    },
    streams,
};

/// Streams to one peer. They share a connection; the second keeps it busy while the first is between two answers.
const LANES: usize = 2;
/// Requests on their way in one stream.
const ASKED_MAX: usize = 16;
/// Most bytes of a call: a batch of 256 contents.
const CALL_BYTES_MAX: usize = 16 * 1024;
// What a batch brings fits an answer.
const _: () = assert!(BATCH_BYTES_MAX <= BLOCK_ANSWER_BYTES_MAX as u64);
/// Most bytes of the head of an answer: 1024 ranges of two numbers.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Bytes read or written between two signs of life; one frame of the multiplexer.
const PIECE_BYTES: usize = 256 * 1024;
/// Answers with up to so much data leave together with their heads, in one frame of the multiplexer: each frame may wake the other
/// side by itself. What is copied for that takes less time.
const GATHERED_BYTES_MAX: usize = 160 * 1024;
/// Longest time for an answer to leave: this, and what its bytes take at the least rate.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
const RATE_MIN_BYTES_PER_S: u64 = 64 * 1024;
/// Answers in a row that a peer does not take in time, after which it gets none for a while.
const MISSED_MAX: u32 = 2;
const MISSED_PAUSE: Duration = Duration::from_secs(60);
/// Longest time for the service to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Pauses before a broken stream is opened again.
const REOPEN_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// What a peer is asked for.
#[derive(Clone)]
pub(super) enum Asked {
    Blocks(BlockRequest),
    Batch(BatchRequest),
}

struct Question {
    number: u64,
    asked: Asked,
    answer: oneshot::Sender<BlockAnswer>,
    /// Held until the answer came or the stream ended.
    _place: OwnedSemaphorePermit,
}

enum Job {
    Ask(Question),
    Cancel(u64),
}

struct Lane {
    places: Arc<Semaphore>,
    jobs: mpsc::Sender<Job>,
}

/// The requesting side of one peer.
pub(super) struct BlockClient {
    next: AtomicU64,
    lanes: Vec<Lane>,
}

/// Tells the other side, unless the answer came.
struct Wanted<'a> {
    lane: &'a Lane,
    number: u64,
    answered: bool,
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        if !self.answered {
            // Without room for it the answer comes after all, and is thrown away.
            let _ = self.lane.jobs.try_send(Job::Cancel(self.number));
        }
    }
}

impl BlockClient {
    /// Asks; `None` when the stream ended first. The caller bounds the time. Dropping the future cancels.
    pub(super) async fn fetch(&self, asked: Asked) -> Option<BlockAnswer> {
        let lane = self
            .lanes
            .iter()
            .max_by_key(|lane| lane.places.available_permits())?;
        let place = lane.places.clone().acquire_owned().await.ok()?;
        let number = self.next.fetch_add(1, Relaxed);
        let (answer, answered) = oneshot::channel();
        let question = Question {
            number,
            asked,
            answer,
            _place: place,
        };
        lane.jobs.send(Job::Ask(question)).await.ok()?;
        let mut wanted = Wanted {
            lane,
            number,
            answered: false,
        };
        let answer = answered.await.ok();
        wanted.answered = true;
        answer
    }
}

/// Starts the requesting side of a peer; it ends with `gone`. Streams are opened when they are first needed.
pub(super) fn start(
    shared: &Arc<Shared>,
    peer: PeerId,
    gone: &CancellationToken,
    traffic: &Arc<Traffic>,
) -> BlockClient {
    let lanes = (0..LANES).map(|_| {
        let (jobs, mut queue) = mpsc::channel(2 * ASKED_MAX);
        let (shared, gone, traffic) = (shared.clone(), gone.clone(), traffic.clone());
        tokio::spawn(async move {
            let lane = keep_lane(&shared, peer, &traffic, &mut queue);
            gone.run_until_cancelled(lane).await;
        });
        let places = Arc::new(Semaphore::new(ASKED_MAX));
        Lane { places, jobs }
    });
    BlockClient {
        next: AtomicU64::new(1),
        lanes: lanes.collect(),
    }
}

async fn keep_lane(
    shared: &Shared,
    peer: PeerId,
    traffic: &Traffic,
    queue: &mut mpsc::Receiver<Job>,
) {
    let [mut pause, pause_max] = REOPEN_PAUSES;
    while let Some(first) = queue.recv().await {
        let Job::Ask(first) = first else { continue };
        if first.answer.is_closed() {
            continue;
        }
        let ended = match streams::open(shared, peer, BLOCKS).await {
            Ok(stream) => {
                pause = REOPEN_PAUSES[0];
                run(shared, traffic, stream, first, queue).await
            }
            Err(error) => FrameError::Io(io::Error::other(error.to_string())),
        };
        debug!(%peer, %ended, "no block stream");
        streams::blame(shared, peer, &ended).await;
        sleep(pause).await;
        pause = (pause * 2).min(pause_max);
    }
}

/// Uses one stream until it ends; tells why it did.
async fn run(
    shared: &Shared,
    traffic: &Traffic,
    stream: Stream,
    first: Question,
    queue: &mut mpsc::Receiver<Job>,
) -> FrameError {
    let (mut reader, mut writer) = stream.split();
    let waiting = Mutex::new(BTreeMap::<u64, Question>::new());
    let sending = async {
        let mut next = Some(Job::Ask(first));
        while let Some(job) = next {
            let call = match job {
                Job::Ask(question) if question.answer.is_closed() => None,
                Job::Ask(question) => {
                    let call = match question.asked.clone() {
                        Asked::Blocks(request) => BlockCall::Request(question.number, request),
                        Asked::Batch(request) => BlockCall::Batch(question.number, request),
                    };
                    waiting.lock().insert(question.number, question);
                    Some(call)
                }
                Job::Cancel(number) => waiting
                    .lock()
                    .contains_key(&number)
                    .then_some(BlockCall::Cancel(number)),
            };
            if let Some(call) = call {
                framing::write(&mut writer, &call, CALL_BYTES_MAX).await?;
            }
            next = queue.recv().await;
        }
        Err(io::Error::from(io::ErrorKind::BrokenPipe).into())
    };
    let receiving = async {
        loop {
            let head: BlockHead = framing::read(&mut reader, HEAD_BYTES_MAX).await?;
            let (BlockHead::Data { number, .. }
            | BlockHead::WrongSize { number, .. }
            | BlockHead::Batch { number, .. }
            | BlockHead::DontHave { number, .. }
            | BlockHead::Busy { number }
            | BlockHead::Cancelled { number }) = head;
            let Some(question) = waiting.lock().remove(&number) else {
                return Err(FrameError::Malformed("an answer to no request".into()));
            };
            let count = |bytes: usize| {
                traffic.block_received.fetch_add(bytes as u64, Relaxed);
                let counter = &shared.counters.block_received;
                counter.fetch_add(bytes as u64, Relaxed);
            };
            let wanted = !question.answer.is_closed();
            let fits = match head {
                BlockHead::Data { .. }
                | BlockHead::WrongSize { .. }
                | BlockHead::DontHave { .. } => matches!(question.asked, Asked::Blocks(_)),
                // Looked at when it is read.
                BlockHead::Batch { .. } | BlockHead::Busy { .. } | BlockHead::Cancelled { .. } => {
                    true
                }
            };
            if !fits {
                return Err(FrameError::Malformed("an answer of another kind".into()));
            }
            let answer = match head {
                BlockHead::Batch { here, .. } => {
                    read_batch(&mut reader, &question.asked, &here, wanted, count).await?
                }
                BlockHead::Data { length, .. } => read_data(&mut reader, length, wanted, count)
                    .await?
                    .map(BlockAnswer::Data),
                BlockHead::WrongSize { size, length, .. } => {
                    let proof = read_data(&mut reader, length, wanted, count).await?;
                    proof.map(|proof| BlockAnswer::WrongSize { size, proof })
                }
                BlockHead::DontHave { have, .. } => Some(BlockAnswer::DontHave(have)),
                BlockHead::Busy { .. } => Some(BlockAnswer::Busy),
                BlockHead::Cancelled { .. } => None,
            };
            if let Some(answer) = answer {
                answer
                    .check()
                    .map_err(|reason| FrameError::Malformed(reason.into()))?;
                // Whoever asked may have given up meanwhile.
                let _ = question.answer.send(answer);
            }
        }
    };
    let ended: Result<(), FrameError> = tokio::select! {
        ended = sending => ended,
        ended = receiving => ended,
    };
    match ended {
        Err(error) => error,
        Ok(()) => FrameError::Io(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads the contents of a batch, or throws them away. How many bytes there are says the question, not the answer.
async fn read_batch<S: AsyncRead + Unpin>(
    reader: &mut S,
    asked: &Asked,
    here: &[u8],
    wanted: bool,
    count: impl Fn(usize),
) -> Result<Option<BlockAnswer>, FrameError> {
    let Asked::Batch(request) = asked else {
        return Err(FrameError::Malformed("an answer of another kind".into()));
    };
    let length = request
        .bytes_of(here)
        .map_err(|reason| FrameError::Malformed(reason.into()))?;
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let data = read_data(reader, length, wanted, count).await?;
    Ok(data.map(|data| BlockAnswer::Batch {
        here: here.iter().map(|said| *said == 1).collect(),
        data,
    }))
}

/// Reads the bytes of an answer, or throws them away.
async fn read_data<S: AsyncRead + Unpin>(
    reader: &mut S,
    length: u32,
    wanted: bool,
    count: impl Fn(usize),
) -> Result<Option<Bytes>, FrameError> {
    let length = length as usize;
    if length > BLOCK_ANSWER_BYTES_MAX {
        return Err(FrameError::Malformed(format!(
            "{length} bytes where {BLOCK_ANSWER_BYTES_MAX} are the limit"
        )));
    }
    let mut bytes = Buffer::new(if wanted {
        length
    } else {
        PIECE_BYTES.min(length)
    });
    let mut done = 0;
    while done < length {
        let piece = PIECE_BYTES.min(length - done);
        let start = if wanted { done } else { 0 };
        // Counted as it comes: a piece takes long on a slow line.
        let came = reader.read(&mut bytes[start..start + piece]).await?;
        if came == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        count(came);
        done += came;
    }
    Ok(wanted.then(|| bytes.into()))
}

/// Counts an answer as long as it is worked on.
struct Load(Arc<Shared>);

impl Load {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.load.fetch_add(1, Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Relaxed);
    }
}

/// How well a peer takes its answers.
#[derive(Default)]
pub(super) struct Patience {
    missed: u32,
    until: Option<Instant>,
}

impl Patience {
    fn taken(&mut self) {
        self.missed = 0;
    }

    fn missed(&mut self, now: Instant) {
        self.missed += 1;
        if self.missed >= MISSED_MAX {
            self.missed = 0;
            self.until = Some(now + MISSED_PAUSE);
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// What an answer holds until its last byte is written.
struct Held {
    _place: OwnedSemaphorePermit,
    room: Option<OwnedSemaphorePermit>,
    accepted: Option<Accepted>,
    _load: Load,
}

enum Outgoing {
    Answer(u64, BlockAnswer, Arc<Held>),
    Cancelled(u64),
}

/// Answers on a stream that a proven peer opened.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    stream: Stream,
) -> Result<(), FrameError> {
    let (mut reader, mut writer) = stream.split();
    let (answers, mut answered) = mpsc::channel(ASKED_MAX);
    // Who takes a number out of this map sends what there is to say about it: who writes the answer, or a cancellation. So an
    // answer that waits for its turn can still be cancelled.
    let running = Arc::new(Mutex::new(BTreeMap::<u64, AbortHandle>::new()));
    let mut tasks = JoinSet::new();

    let reading = async {
        loop {
            let call = framing::read(&mut reader, CALL_BYTES_MAX).await?;
            while tasks.try_join_next().is_some() {}
            let service = shared.service.clone();
            let refused = |reason: &'static str| FrameError::Malformed(reason.into());
            let (number, bytes) = match &call {
                BlockCall::Request(number, request) => {
                    request.check().map_err(refused)?;
                    let blocks = request.start..request.end;
                    let bytes = request.object.bytes_of(blocks);
                    (*number, bytes.end - bytes.start)
                }
                BlockCall::Batch(number, request) => {
                    request.check().map_err(refused)?;
                    let bytes = request.0.iter().map(|object| object.size).sum();
                    (*number, bytes)
                }
                BlockCall::Cancel(number) => {
                    let task = running.lock().remove(number);
                    if let Some(task) = task {
                        task.abort();
                        let _ = answers.send(Outgoing::Cancelled(*number)).await;
                    }
                    continue;
                }
            };
            let place = peer.answers.clone().acquire_owned().await;
            let place = place.map_err(io::Error::other)?;
            let mut room = None;
            if !peer.patience.lock().is_over(Instant::now()) {
                room = shared.answers.clone().try_acquire_owned().ok();
            }
            let accepted = shared.upload.accept(bytes);
            let held = Arc::new(Held {
                _place: place,
                room,
                accepted,
                _load: Load::new(shared),
            });
            let busy = held.room.is_none() || held.accepted.is_none();
            // What reads from the disk can't be called back: it keeps its place when the request is cancelled, or who asks and
            // cancels again and again would have any number of reads wait for the disk.
            let work = match call {
                _ if busy => None,
                BlockCall::Request(_, request) => {
                    Some(service.blocks(peer.id, request, held.clone()))
                }
                BlockCall::Batch(_, request) => Some(service.batch(peer.id, request, held.clone())),
                BlockCall::Cancel(_) => None,
            };
            let answers = answers.clone();
            let mut running = running.lock();
            let task = tasks.spawn(async move {
                let answer = match work {
                    Some(work) => answer(work).await,
                    None => BlockAnswer::Busy,
                };
                let _ = answers.send(Outgoing::Answer(number, answer, held)).await;
            });
            if running.insert(number, task).is_some() {
                return Err(refused("a number twice"));
            }
        }
    };
    let writing = async {
        while let Some(outgoing) = answered.recv().await {
            match outgoing {
                Outgoing::Cancelled(number) => {
                    write_head(&mut writer, &BlockHead::Cancelled { number }).await?;
                }
                Outgoing::Answer(number, answer, held) => {
                    let is_wanted = running.lock().remove(&number).is_some();
                    if !is_wanted {
                        continue;
                    }
                    let sent = write_answer(&mut writer, shared, peer, number, answer).await?;
                    let Some(sent) = sent else {
                        peer.patience.lock().missed(Instant::now());
                        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                    };
                    if sent > 0 {
                        peer.patience.lock().taken();
                    }
                    peer.traffic.block_sent.fetch_add(sent, Relaxed);
                    shared.counters.block_sent.fetch_add(sent, Relaxed);
                    drop(held);
                }
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

/// The service's answer, made fit to be sent.
async fn answer(service: impl Future<Output = BlockAnswer>) -> BlockAnswer {
    let answer = timeout(ANSWER_WITHIN, service).await;
    let answer = answer.unwrap_or(BlockAnswer::Busy);
    match answer.check() {
        Ok(()) => answer,
        Err(reason) => {
            error!(reason, "a block answer that cannot be sent");
            BlockAnswer::Busy
        }
    }
}

async fn write_head<S: AsyncWrite + Unpin>(
    writer: &mut S,
    head: &BlockHead,
) -> Result<(), FrameError> {
    timeout(WRITE_WITHIN, framing::write(writer, head, HEAD_BYTES_MAX))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Longest time for an answer to leave.
fn time_for(answer: &BlockAnswer) -> Duration {
    let bytes = match answer {
        BlockAnswer::Data(data)
        | BlockAnswer::Batch { data, .. }
        | BlockAnswer::WrongSize { proof: data, .. } => data.len(),
        BlockAnswer::DontHave(_) | BlockAnswer::Busy => 0,
    };
    let millis = (bytes as u64).saturating_mul(1000) / RATE_MIN_BYTES_PER_S;
    WRITE_WITHIN + Duration::from_millis(millis)
}

/// Writes an answer; tells the bytes of its data, or `None` where the peer did not take them in time. The time that is spent
/// waiting for the limit on what is sent is not the peer's.
async fn write_answer<S: AsyncWrite + Unpin>(
    writer: &mut S,
    shared: &Shared,
    peer: &Peer,
    number: u64,
    answer: BlockAnswer,
) -> Result<Option<u64>, FrameError> {
    let mut left = time_for(&answer);
    let length = |data: &Bytes| data.len().try_into().unwrap_or(u32::MAX);
    let (head, data) = match answer {
        BlockAnswer::Data(data) => {
            let length = length(&data);
            (BlockHead::Data { number, length }, data)
        }
        BlockAnswer::WrongSize { size, proof } => {
            let length = length(&proof);
            (
                BlockHead::WrongSize {
                    number,
                    size,
                    length,
                },
                proof,
            )
        }
        BlockAnswer::Batch { here, data } => {
            let here = here.into_iter().map(u8::from).collect::<Vec<u8>>().into();
            (BlockHead::Batch { number, here }, data)
        }
        BlockAnswer::DontHave(have) => (BlockHead::DontHave { number, have }, Bytes::new()),
        BlockAnswer::Busy => (BlockHead::Busy { number }, Bytes::new()),
    };
    let mut frame = framing::encode(&head, HEAD_BYTES_MAX)?;
    let piece_bytes = shared.upload.piece_bytes(PIECE_BYTES);
    let gathered = match data.len() <= GATHERED_BYTES_MAX.min(piece_bytes) {
        true => data.len(),
        false => 0,
    };
    frame.extend_from_slice(&data[..gathered]);
    let pieces = data[gathered..].chunks(piece_bytes);
    let pieces = pieces.map(|piece| (piece, piece.len()));
    for (piece, limited_bytes) in std::iter::once((&frame[..], gathered)).chain(pieces) {
        if limited_bytes > 0 {
            shared.upload.pass(&peer.turn, limited_bytes).await;
        }
        let started = Instant::now();
        // Flushed where a piece may wait long for the next one.
        let write = async {
            writer.write_all(piece).await?;
            match piece_bytes < PIECE_BYTES {
                true => writer.flush().await,
                false => Ok(()),
            }
        };
        let Ok(written) = timeout(left, write).await else {
            return Ok(None);
        };
        written?;
        left = left.saturating_sub(started.elapsed());
    }
    match timeout(left, writer.flush()).await {
        Ok(flushed) => flushed?,
        Err(_) => return Ok(None),
    }
    Ok(Some(data.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_time_for_a_slow_line_and_no_more() {
        let largest = BlockAnswer::Data(vec![0; BLOCK_ANSWER_BYTES_MAX].into());
        let seconds = time_for(&largest).as_secs();
        assert!((26..=28).contains(&seconds), "{seconds} s");
        assert_eq!(time_for(&BlockAnswer::Busy), WRITE_WITHIN);
    }

    #[test]
    fn who_misses_two_answers_in_a_row_gets_none_for_a_while() {
        let now = Instant::now();
        let mut patience = Patience::default();
        patience.missed(now);
        patience.taken();
        patience.missed(now);
        assert!(!patience.is_over(now));
        patience.missed(now);
        assert!(patience.is_over(now));
        assert!(!patience.is_over(now + MISSED_PAUSE));
    }
}
