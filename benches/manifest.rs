//! What the manifest costs at 10³ to 10⁷ entries: `cargo bench --bench manifest -- [largest exponent]` (5 by default).
//!
//! Entries are files with incompressible names, in folders of a hundred. Each line of the table is measured by a process of
//! its own, so that memory is that of the line alone: first with nodes in memory, then in a store on the disk, in a
//! temporary folder (`TMPDIR`). Times are means; where the disk is meant to be waited for, the column says so.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    env,
    error::Error,
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Instant,
};

use p2pfs::{
    content::{ContentId, Object},
    manifest::{
        CausalContext, Dot, Entry, HybridTime, Key, Kind, Node, NodeHash, NodeSource, Timestamp,
        TreeError, TreePath, Version, Versions, View, WriterNumber, apply, children, diff,
        empty_root, get, merge, record_folders, summary,
    },
    store::Store,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const FILES_OF_FOLDER: u64 = 100;
/// Entries that are put at once while a tree is built: memory stays that of the tree.
const PORTION: u64 = 100_000;
/// Lone commits that are measured.
const COMMITS: u64 = 200;
/// As the mount bounds them.
const DECODED_BYTES_MAX: usize = 32 * 1024 * 1024;

fn main() -> Result<()> {
    let words: Vec<String> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    match words
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => all(5),
        [exponent] => all(exponent.parse()?),
        ["memory", count] => measure(&Nodes::in_memory(), count.parse()?, None),
        ["disk", count, dir] => {
            let dir = Path::new(dir);
            measure(&Nodes::on_disk(dir)?, count.parse()?, Some(dir))
        }
        ["look", count, dir, root] => look(Path::new(dir), count.parse()?, parse_root(root)?),
        _ => Err("cargo bench --bench manifest -- [largest exponent]".into()),
    }
}

fn all(exponent: u32) -> Result<()> {
    let program = env::current_exe()?;
    let run = |words: &[&str]| -> Result<()> {
        let status = Command::new(&program).args(words).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{words:?}: {status}").into())
        }
    };
    println!(
        "| entries, nodes in | build, entries/s | look-up, µs | folder of 100, µs | update, µs | its new nodes, bytes \
         | written to disk for it, bytes | lone commit, ms / its new nodes, bytes / written, bytes \
         | compare 1 / 1000 changes, ms | merge 1000 + 1000, ms | bytes an entry | resident, MiB |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for exponent in 3..=exponent {
        let count = 10u64.pow(exponent);
        let dir = TempDir::new()?;
        run(&["memory", &count.to_string()])?;
        run(&["disk", &count.to_string(), &dir.0.display().to_string()])?;
        let root = fs::read_to_string(dir.0.join("root"))?;
        run(&[
            "look",
            &count.to_string(),
            &dir.0.display().to_string(),
            &root,
        ])?;
    }
    Ok(())
}

/// Removed when dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Result<Self> {
        let dir = env::temp_dir().join(format!("p2pfs-bench-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Nodes, encoded in memory or in a store, with a bounded number of decoded ones.
struct Nodes {
    store: Option<Store>,
    memory: RefCell<HashMap<NodeHash, Vec<u8>>>,
    decoded: RefCell<(HashMap<NodeHash, Arc<Node>>, usize)>,
}

impl Nodes {
    fn new(store: Option<Store>) -> Self {
        Self {
            store,
            memory: RefCell::default(),
            decoded: RefCell::default(),
        }
    }
    fn in_memory() -> Self {
        Self::new(None)
    }
    fn on_disk(dir: &Path) -> Result<Self> {
        Ok(Self::new(Some(Store::open(&dir.join("state"))?)))
    }
    /// Keeps new nodes; the bytes of their encodings.
    fn keep(&self, nodes: Vec<(NodeHash, Vec<u8>)>) -> Result<usize> {
        let bytes = nodes.iter().map(|(_, bytes)| bytes.len()).sum();
        match &self.store {
            Some(store) => store.put_nodes(&nodes)?,
            None => self.memory.borrow_mut().extend(nodes),
        }
        Ok(bytes)
    }
    fn flush(&self) -> Result<()> {
        if let Some(store) = &self.store {
            store.flush()?;
        }
        Ok(())
    }
    /// Keeps the result of edits.
    fn apply(&self, root: NodeHash, edits: &Edits) -> Result<(NodeHash, usize)> {
        let applied = apply(self, root, edits)?;
        Ok((applied.root, self.keep(applied.nodes)?))
    }
    fn bytes_in_memory(&self) -> usize {
        self.memory.borrow().values().map(Vec::len).sum()
    }
}

impl NodeSource for Nodes {
    fn node(&self, hash: &NodeHash) -> std::result::Result<Option<Arc<Node>>, TreeError> {
        if let Some(node) = self.decoded.borrow().0.get(hash) {
            return Ok(Some(node.clone()));
        }
        let failed = |error: &dyn std::fmt::Display| TreeError::Source(error.to_string());
        let bytes = match &self.store {
            Some(store) => store.node(hash).map_err(|error| failed(&error))?,
            None => self
                .memory
                .borrow()
                .get(hash)
                .map(|bytes| bytes.clone().into()),
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let node = Arc::new(Node::decode(&bytes).map_err(|error| failed(&error))?);
        let (decoded, size) = &mut *self.decoded.borrow_mut();
        *size += bytes.len();
        if *size > DECODED_BYTES_MAX {
            decoded.clear();
            *size = bytes.len();
        }
        decoded.insert(*hash, node.clone());
        Ok(Some(node))
    }
}

type Edits = BTreeMap<Key, Option<Versions>>;

/// The hash of a number: names and contents that nothing can compress, the same in every run.
fn hash(what: &str, number: u64) -> blake3::Hash {
    blake3::hash(format!("{what} {number}").as_bytes())
}

fn folder_name(folder: u64) -> String {
    let name = hash("folder", folder).to_hex();
    format!("{}/{}", &name[..2], &name[2..22])
}

fn folder(folder: u64) -> Result<TreePath> {
    Ok(TreePath::parse(folder_name(folder).as_bytes())?)
}

fn key(file: u64) -> Result<Key> {
    let name = hash("name", file).to_hex();
    let path = format!(
        "{}/{}.jpg",
        folder_name(file / FILES_OF_FOLDER),
        &name[..20]
    );
    let key = Key::of_path(&TreePath::parse(path.as_bytes())?);
    Ok(key.ok_or("a file has a key")?)
}

fn versions(file: u64, writer: u64, sequence: u64) -> Result<Option<Versions>> {
    let content = hash("content", file + (writer << 32) + (sequence << 48));
    let object = Object {
        content: ContentId(*content.as_bytes()),
        size: 1000 + file % 5_000_000,
    };
    let time = 1_700_000_000_000_000_000 + file * 1_000_003 + sequence;
    let version = Version {
        dot: Dot {
            writer: WriterNumber(0x0123_4567_89ab_cde0 + writer),
            sequence,
        },
        time: HybridTime(time),
        entry: Entry::new(
            Kind::File(object),
            0o644,
            1000,
            1000,
            Timestamp(time as i64),
        ),
        moved: None,
    };
    Ok(Versions::new(vec![version]))
}

/// `count` files, spread over all, changed by a writer.
fn changes(total: u64, count: u64, writer: u64) -> Result<Edits> {
    let step = (total / count).max(1);
    let files = (0..count.min(total)).map(|nth| (nth * step + writer) % total);
    files
        .map(|file| Ok((key(file)?, versions(file, writer, 2)?)))
        .collect()
}

/// Builds in portions, in order of the folders' names, as copying a tree does.
fn build(nodes: &Nodes, count: u64) -> Result<NodeHash> {
    let mut folders: Vec<u64> = (0..count / FILES_OF_FOLDER).collect();
    folders.sort_by_cached_key(|&number| folder_name(number));
    let mut root = empty_root();
    for portion in folders.chunks((PORTION / FILES_OF_FOLDER) as usize) {
        let files = portion
            .iter()
            .flat_map(|folder| folder * FILES_OF_FOLDER..(folder + 1) * FILES_OF_FOLDER);
        let mut edits = files
            .map(|file| Ok((key(file)?, versions(file, 0, 1)?)))
            .collect::<Result<_>>()?;
        record(nodes, root, &mut edits, 1)?;
        root = nodes.apply(root, &edits)?.0;
    }
    nodes.flush()?;
    Ok(root)
}

/// Adds what a commit does to the records of folders.
fn record(nodes: &Nodes, root: NodeHash, edits: &mut Edits, sequence: u64) -> Result<()> {
    let dot = Dot {
        writer: WriterNumber(0x0123_4567_89ab_cde0),
        sequence,
    };
    Ok(record_folders(nodes, root, edits, dot, |_| {
        HybridTime(1_800_000_000_000_000_000)
    })?)
}

/// Microseconds that each of `times` calls takes on average.
fn mean_us<T>(times: u64, mut call: impl FnMut(u64) -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    for nth in 0..times {
        black_box(call(nth)?);
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / times as f64)
}

fn measure(nodes: &Nodes, count: u64, dir: Option<&Path>) -> Result<()> {
    let start = Instant::now();
    let root = build(nodes, count)?;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    if summary(nodes, root)?.files != count {
        return Err("the tree does not hold what was put in".into());
    }
    let resident = resident_mib()?;
    let bytes = match dir {
        Some(dir) => disk_bytes(&dir.join("state"))?,
        None => nodes.bytes_in_memory() as u64,
    };
    // Neither next to one another nor in order.
    let spread = |nth: u64| nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count;
    let look_up = mean_us(10_000, |nth| match get(nodes, root, &key(spread(nth))?)? {
        Some(_) => Ok(()),
        None => Err("a file is not there".into()),
    })?;
    let list = mean_us(1000, |nth| {
        let shown = children(
            nodes,
            &View::of(root),
            &folder(spread(nth) / FILES_OF_FOLDER)?,
        )?;
        if shown.len() as u64 == FILES_OF_FOLDER {
            Ok(())
        } else {
            Err("a folder is not whole".into())
        }
    })?;

    let written = written_bytes()?;
    let (mut updated, mut new_bytes) = (root, 0);
    let update = mean_us(1000, |nth| {
        let file = spread(nth);
        let edits = Edits::from([(key(file)?, versions(file, 0, 2)?)]);
        let (root, bytes) = nodes.apply(updated, &edits)?;
        updated = root;
        new_bytes += bytes;
        Ok(())
    })?;
    nodes.flush()?;
    let written = written_bytes()?.saturating_sub(written) / 1000;

    // One change after the other as the node commits it: with the record of its folder, and on the disk before the next.
    let before = written_bytes()?;
    let mut commit_bytes = 0;
    let commit = mean_us(COMMITS, |nth| {
        let file = spread(nth + 5000);
        let mut edits = Edits::from([(key(file)?, versions(file, 0, 3 + nth)?)]);
        record(nodes, updated, &mut edits, 3 + nth)?;
        let (root, bytes) = nodes.apply(updated, &edits)?;
        updated = root;
        commit_bytes += bytes;
        nodes.flush()
    })?;
    let committed = written_bytes()?.saturating_sub(before) / COMMITS;
    let commit_bytes = commit_bytes as u64 / COMMITS;

    let one = nodes.apply(root, &changes(count, 1, 1)?)?.0;
    let ours = nodes.apply(root, &changes(count, 1000, 2)?)?.0;
    let theirs = nodes.apply(root, &changes(count, 1000, 3)?)?.0;
    let compare_one = mean_us(100, |_| Ok(diff(nodes, root, one, usize::MAX)?))?;
    let compare = mean_us(10, |_| Ok(diff(nodes, root, ours, usize::MAX)?))?;
    let seen = |writer: u64| {
        let mut context = CausalContext::default();
        for (writer, sequence) in [(0, 1), (writer, 2)] {
            let writer = WriterNumber(0x0123_4567_89ab_cde0 + writer);
            context.add(Dot { writer, sequence });
        }
        context
    };
    let merging = mean_us(10, |_| {
        Ok(merge(nodes, (ours, &seen(2)), (theirs, &seen(3)))?)
    })?;

    let commit = format!("{:.1} / {commit_bytes}", commit / 1e3);
    let (source, on_disk, commit) = match dir {
        Some(dir) => {
            fs::write(dir.join("root"), root.to_string())?;
            let commit = format!("{commit} / {committed}");
            ("store", written.to_string(), commit)
        }
        None => ("memory", String::new(), commit),
    };
    println!(
        "| {count}, {source} | {rate:.0} | {look_up:.1} | {list:.0} | {update:.0} | {} | {on_disk} | {commit} | {:.2} / {:.1} | {:.1} | {:.0} | {resident} |",
        new_bytes / 1000,
        compare_one / 1e3,
        compare / 1e3,
        merging / 1e3,
        bytes as f64 / count as f64,
    );
    Ok(())
}

/// A process that has just opened the store: what looking at ten folders takes.
fn look(dir: &Path, count: u64, root: NodeHash) -> Result<()> {
    let start = Instant::now();
    let nodes = Nodes::on_disk(dir)?;
    let opened = start.elapsed();
    let list = mean_us(10, |nth| {
        let number = nth * (count / FILES_OF_FOLDER / 10);
        Ok(children(&nodes, &View::of(root), &folder(number)?)?)
    })?;
    println!(
        "| {count}, store, opened in {:.0} ms | | | {list:.0} | | | | | | | | {} |",
        opened.as_secs_f64() * 1e3,
        resident_mib()?,
    );
    Ok(())
}

fn parse_root(text: &str) -> Result<NodeHash> {
    Ok(NodeHash(text.parse::<ContentId>()?.0))
}

/// Resident memory of this process.
fn resident_mib() -> Result<u64> {
    Ok(number_in("/proc/self/status", "VmRSS:")? / 1024)
}

/// Bytes that this process had written to disks.
fn written_bytes() -> Result<u64> {
    number_in("/proc/self/io", "write_bytes:")
}

fn number_in(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("the kernel does not tell")?.parse()?)
}

/// What a folder takes on the disk.
fn disk_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(dir) {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}
