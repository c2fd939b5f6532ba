//! The filesystem compared with a simple model in memory, operation by operation.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    fs::ops::{Changes, Place, Replace},
    manifest::{Kind, Timestamp},
};

/// Paths that operations choose from: few, so that they meet.
const PATHS: [&str; 8] = ["a", "b", "d", "e", "d/a", "d/f", "e/a", "d/f/b"];
const SIZE_MAX: u64 = 150_000;

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    /// Opens, writes there, closes.
    Write(usize, u64, usize, u8),
    Append(usize, usize, u8),
    Truncate(usize, u64),
    Mkdir(usize),
    Rmdir(usize),
    Unlink(usize),
    Symlink(usize),
    Rename(usize, usize, bool),
    Exchange(usize, usize),
    /// One more name for a file.
    Link(usize, usize),
    Chmod(usize, u32),
    Touch(usize, i64),
    /// Copies a range to the same place of another file: by reference where that can be, as the kernel does otherwise.
    Copy(usize, usize, u64, usize),
    /// Opens and keeps open.
    Hold(usize, bool),
    /// Through a handle that is kept open.
    WriteHeld(usize, u64, usize, u8),
    Drop(usize),
    /// The content comes from elsewhere.
    Arrive(usize, usize, u8),
    Publish,
}

fn step() -> impl Strategy<Value = Step> {
    let path = || 0..PATHS.len();
    let offset = || prop_oneof![0..200u64, 65_530..65_540u64, 0..SIZE_MAX];
    let length = || prop_oneof![1..50usize, 4_090..4_100usize, 1..40_000usize];
    prop_oneof![
        3 => path().prop_map(Step::Create),
        4 => (path(), offset(), length(), any::<u8>()).prop_map(|(p, o, l, b)| Step::Write(p, o, l, b)),
        2 => (path(), length(), any::<u8>()).prop_map(|(p, l, b)| Step::Append(p, l, b)),
        2 => (path(), offset()).prop_map(|(p, o)| Step::Truncate(p, o)),
        3 => path().prop_map(Step::Mkdir),
        1 => path().prop_map(Step::Rmdir),
        2 => path().prop_map(Step::Unlink),
        1 => path().prop_map(Step::Symlink),
        4 => (path(), path(), any::<bool>()).prop_map(|(a, b, r)| Step::Rename(a, b, r)),
        1 => (path(), path()).prop_map(|(a, b)| Step::Exchange(a, b)),
        4 => (path(), path()).prop_map(|(a, b)| Step::Link(a, b)),
        1 => (path(), 0..0o1000u32).prop_map(|(p, m)| Step::Chmod(p, m)),
        1 => (path(), 1..1_000_000_000i64).prop_map(|(p, t)| Step::Touch(p, t)),
        3 => (path(), path(), offset(), length()).prop_map(|(a, b, o, l)| Step::Copy(a, b, o, l)),
        2 => (path(), path()).prop_map(|(a, b)| Step::Copy(a, b, 0, SIZE_MAX as usize)),
        3 => (path(), any::<bool>()).prop_map(|(p, w)| Step::Hold(p, w)),
        3 => (0..4usize, offset(), length(), any::<u8>()).prop_map(|(h, o, l, b)| Step::WriteHeld(h, o, l, b)),
        2 => (0..4usize).prop_map(Step::Drop),
        1 => (path(), length(), any::<u8>()).prop_map(|(p, l, b)| Step::Arrive(p, l, b)),
        1 => Just(Step::Publish),
    ]
}

/// A file of the model, by number in [`Model::files`].
#[derive(Clone, Debug, PartialEq)]
enum Node {
    File(usize),
    Folder,
    Symlink(usize),
}

#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, Node>,
    /// Contents; a file that lost its name stays for its handles.
    files: Vec<Vec<u8>>,
    modes: BTreeMap<usize, u32>,
    times: BTreeMap<usize, i64>,
    /// Handles: of the filesystem, file of the model, whether it writes.
    held: Vec<(u64, usize, bool)>,
}

impl Model {
    fn folder_is_there(&self, path: &str) -> bool {
        match path.rsplit_once('/') {
            Some((folder, _)) => self.nodes.get(folder) == Some(&Node::Folder),
            None => true,
        }
    }

    fn below(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        self.nodes
            .keys()
            .filter(|key| key.starts_with(&prefix))
            .cloned()
            .collect()
    }

    fn file(&self, path: &str) -> Result<usize, i32> {
        match self.nodes.get(path) {
            Some(Node::File(number)) => Ok(*number),
            Some(Node::Folder) => Err(libc::EISDIR),
            Some(Node::Symlink(_)) => Err(libc::EINVAL),
            None => Err(libc::ENOENT),
        }
    }

    fn add(&mut self, path: &str, node: Node) -> Result<(), i32> {
        if self.nodes.contains_key(path) {
            return Err(libc::EEXIST);
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    fn remove(&mut self, path: &str, folder: bool) -> Result<(), i32> {
        match (self.nodes.get(path), folder) {
            (None, _) => return Err(libc::ENOENT),
            (Some(Node::Folder), false) => return Err(libc::EISDIR),
            (Some(Node::Folder), true) if !self.below(path).is_empty() => {
                return Err(libc::ENOTEMPTY);
            }
            (Some(Node::File(_) | Node::Symlink(_)), true) => return Err(libc::ENOTDIR),
            _ => {}
        }
        self.nodes.remove(path);
        Ok(())
    }

    fn write(&mut self, number: usize, offset: u64, data: &[u8]) {
        let file = &mut self.files[number];
        let (start, end) = (offset as usize, offset as usize + data.len());
        if file.len() < end {
            file.resize(end, 0);
        }
        file[start..end].copy_from_slice(data);
        self.times.remove(&number);
    }

    fn rename(&mut self, from: &str, to: &str, replace: bool) -> Result<(), i32> {
        let source = self.nodes.get(from).cloned().ok_or(libc::ENOENT)?;
        if from == to {
            return Ok(());
        }
        if to.starts_with(&format!("{from}/")) {
            return Err(libc::EINVAL);
        }
        match (self.nodes.get(to), &source) {
            // Two names of one file.
            (Some(there), here) if replace && there == here && *here != Node::Folder => {
                return Ok(());
            }
            (Some(_), _) if !replace => return Err(libc::EEXIST),
            (Some(Node::Folder), Node::Folder) if !self.below(to).is_empty() => {
                return Err(libc::ENOTEMPTY);
            }
            (Some(Node::Folder), Node::File(_) | Node::Symlink(_)) => return Err(libc::EISDIR),
            (Some(Node::File(_) | Node::Symlink(_)), Node::Folder) => return Err(libc::ENOTDIR),
            _ => {}
        }
        self.carry(from, to);
        Ok(())
    }

    fn link(&mut self, from: &str, to: &str) -> Result<(), i32> {
        let node = self.nodes.get(from).cloned().ok_or(libc::ENOENT)?;
        if self.nodes.contains_key(to) {
            return Err(libc::EEXIST);
        }
        if node == Node::Folder {
            return Err(libc::EPERM);
        }
        self.nodes.insert(to.to_owned(), node);
        Ok(())
    }

    fn carry(&mut self, from: &str, to: &str) {
        for path in self.below(from) {
            let node = self.nodes.remove(&path).expect("listed");
            self.nodes
                .insert(format!("{to}{}", &path[from.len()..]), node);
        }
        if let Some(node) = self.nodes.remove(from) {
            self.nodes.insert(to.to_owned(), node);
        }
    }

    fn exchange(&mut self, a: &str, b: &str) -> Result<(), i32> {
        if !self.nodes.contains_key(a) {
            return Err(libc::ENOENT);
        }
        if a == b {
            return Ok(());
        }
        if a.starts_with(&format!("{b}/")) || b.starts_with(&format!("{a}/")) {
            return Err(libc::EINVAL);
        }
        if !self.nodes.contains_key(b) {
            return Err(libc::ENOENT);
        }
        self.carry(a, "*");
        self.carry(b, a);
        self.carry("*", b);
        Ok(())
    }
}

fn compare(fixture: &Fixture, model: &Model) {
    let mut names: Vec<String> = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for name in fixture.names(&folder).expect("listed") {
            let path = if folder.is_empty() {
                name
            } else {
                format!("{folder}/{name}")
            };
            let attr = fixture
                .attr(&path)
                .unwrap_or_else(|error| panic!("{path} was listed: errno {error}"));
            match (&attr.kind, model.nodes.get(&path)) {
                (Kind::Directory, Some(Node::Folder)) => folders.push(path.clone()),
                (Kind::Symlink(_), Some(Node::Symlink(_))) => {}
                (Kind::File(_), Some(Node::File(number))) => {
                    assert_eq!(attr.size, model.files[*number].len() as u64, "{path}");
                    let same = |node: &&Node| **node == Node::File(*number);
                    let names = model.nodes.values().filter(same).count();
                    assert_eq!(attr.links as usize, names, "{path}");
                    assert!(
                        fixture.content(&path).expect("read") == model.files[*number],
                        "{path}"
                    );
                    if let Some(mode) = model.modes.get(number) {
                        assert_eq!(attr.mode, *mode, "{path}");
                    }
                    if let Some(time) = model.times.get(number) {
                        assert_eq!(attr.modified_ns, *time, "{path}");
                    }
                }
                (kind, expected) => panic!("{path} is {kind:?}, not {expected:?}"),
            }
            names.push(path);
        }
    }
    names.sort();
    assert_eq!(names, model.nodes.keys().cloned().collect::<Vec<_>>());
    for (handle, number, _) in &model.held {
        let read = fixture
            .read_at(*handle, 0, SIZE_MAX as usize * 2)
            .expect("read");
        assert!(read == model.files[*number], "a handle that was kept open");
    }
}

fn apply(fixture: &Fixture, model: &mut Model, step: Step) {
    let path_of = |index: usize| PATHS[index];
    let first = match &step {
        Step::Create(p)
        | Step::Write(p, ..)
        | Step::Append(p, ..)
        | Step::Truncate(p, _)
        | Step::Mkdir(p)
        | Step::Rmdir(p)
        | Step::Unlink(p)
        | Step::Symlink(p)
        | Step::Rename(p, ..)
        | Step::Exchange(p, _)
        | Step::Link(p, _)
        | Step::Chmod(p, _)
        | Step::Touch(p, _)
        | Step::Copy(p, ..)
        | Step::Hold(p, _)
        | Step::Arrive(p, ..) => path_of(*p),
        Step::WriteHeld(..) | Step::Drop(_) | Step::Publish => "",
    };
    // The kernel walks to the folder first; what it finds there is its own affair.
    if !first.is_empty() && !model.folder_is_there(first) {
        return;
    }
    let place = || fixture.place(first).expect("the folder is there");
    match step {
        Step::Create(_) => {
            let expected = model.add(first, Node::File(model.files.len()));
            let created = fixture.create(first);
            assert_eq!(created.map(|handle| fixture.core.release(handle)), expected);
            if expected.is_ok() {
                model.files.push(Vec::new());
            }
        }
        Step::Write(_, offset, len, byte) => {
            let handle = fixture.open_file(first, libc::O_WRONLY);
            assert_eq!(handle.map(|_| ()), model.file(first).map(|_| ()));
            if let (Ok(handle), Ok(number)) = (handle, model.file(first)) {
                fixture
                    .write_at(handle, offset, &vec![byte; len])
                    .expect("written");
                fixture.core.release(handle);
                model.write(number, offset, &vec![byte; len]);
            }
        }
        Step::Append(_, len, byte) => {
            if let Ok(number) = model.file(first) {
                let handle = fixture.open_file(first, libc::O_RDWR).expect("opened");
                let end = fixture.attr(first).expect("there").size;
                fixture
                    .write_at(handle, end, &vec![byte; len])
                    .expect("written");
                fixture.core.release(handle);
                model.write(number, end, &vec![byte; len]);
            }
        }
        Step::Truncate(_, size) => {
            let changes = Changes {
                size: Some(size),
                ..Changes::default()
            };
            let done = fixture
                .walk(first)
                .and_then(|number| fixture.act(move |core| core.setattr(number, &changes)));
            assert_eq!(done.map(|_| ()), model.file(first).map(|_| ()));
            if let Ok(number) = model.file(first) {
                let file = &mut model.files[number];
                if file.len() as u64 != size {
                    file.resize(size as usize, 0);
                    model.times.remove(&number);
                }
            }
        }
        Step::Mkdir(_) | Step::Symlink(_) => {
            let (kind, node) = match step {
                Step::Mkdir(_) => (Kind::Directory, Node::Folder),
                _ => {
                    model.files.push(Vec::new());
                    let number = model.files.len() - 1;
                    (Kind::Symlink(b"target".to_vec()), Node::Symlink(number))
                }
            };
            let (folder, name) = place();
            let made = fixture
                .act(move |core| core.make(CALLER, folder, &name, kind.clone(), 0o755))
                .map(|_| ());
            assert_eq!(made, model.add(first, node));
        }
        Step::Rmdir(_) => {
            let (folder, name) = place();
            let removed = fixture.act(move |core| core.rmdir(folder, &name));
            assert_eq!(removed, model.remove(first, true));
        }
        Step::Unlink(_) => {
            let (folder, name) = place();
            let removed = fixture.act(move |core| core.unlink(folder, &name));
            assert_eq!(removed, model.remove(first, false));
        }
        Step::Rename(_, to, _) | Step::Exchange(_, to) => {
            let to = path_of(to);
            if !model.folder_is_there(to) {
                return;
            }
            let replace = match step {
                Step::Exchange(..) => Replace::Exchange,
                Step::Rename(_, _, true) => Replace::Yes,
                _ => Replace::No,
            };
            let (from_folder, from_name) = place();
            let (to_folder, to_name) = fixture.place(to).expect("the folder is there");
            let rename = || {
                let (from_name, to_name) = (from_name.clone(), to_name.clone());
                fixture.act(move |core| {
                    core.rename((from_folder, &from_name), (to_folder, &to_name), replace)
                })
            };
            // As the kernel does.
            let renamed = match rename() {
                Err(libc::ESTALE) => {
                    for path in [first, to] {
                        let _ = fixture.walk(path);
                    }
                    rename()
                }
                renamed => renamed,
            };
            let expected = match replace {
                Replace::Exchange => model.exchange(first, to),
                replace => model.rename(first, to, replace == Replace::Yes),
            };
            assert_eq!(renamed, expected);
        }
        Step::Link(_, to) => {
            let to = path_of(to);
            if !model.folder_is_there(to) {
                return;
            }
            let (folder, name) = fixture.place(to).expect("the folder is there");
            let linked = fixture.walk(first).and_then(|number| {
                fixture.act(move |core| core.link(number, folder, &name).map(|_| ()))
            });
            assert_eq!(linked, model.link(first, to));
        }
        Step::Chmod(..) | Step::Touch(..) => {
            let Ok(number) = model.file(first) else {
                return;
            };
            let inode = fixture.walk(first).expect("there");
            let changes = match step {
                Step::Chmod(_, mode) => {
                    model.modes.insert(number, mode);
                    Changes {
                        mode: Some(mode),
                        ..Changes::default()
                    }
                }
                Step::Touch(_, time) => {
                    model.times.insert(number, time);
                    Changes {
                        modified: Some(Timestamp(time)),
                        ..Changes::default()
                    }
                }
                _ => return,
            };
            fixture
                .act(move |core| core.setattr(inode, &changes))
                .expect("set");
        }
        Step::Copy(_, to, offset, len) => {
            let to = path_of(to);
            if !model.folder_is_there(to) || to == first {
                return;
            }
            let (Ok(source), Ok(target)) = (model.file(first), model.file(to)) else {
                return;
            };
            let reading = fixture.open_file(first, libc::O_RDONLY).expect("opened");
            let writing = fixture.open_file(to, libc::O_RDWR).expect("opened");
            let copied = copy(fixture, reading, writing, offset, len);
            fixture.core.release(reading);
            fixture.core.release(writing);
            let file = &model.files[source];
            let end = file.len().min(offset as usize + len);
            let data = file.get(offset as usize..end).unwrap_or_default().to_vec();
            assert_eq!(copied, data.len());
            if !data.is_empty() {
                model.write(target, offset, &data);
            }
        }
        Step::Hold(_, write) => {
            if let Ok(number) = model.file(first)
                && model.held.len() < 4
            {
                let flags = if write { libc::O_RDWR } else { libc::O_RDONLY };
                let handle = fixture.open_file(first, flags).expect("opened");
                model.held.push((handle, number, write));
            }
        }
        Step::WriteHeld(index, offset, len, byte) => {
            if let Some((handle, number, true)) = model.held.get(index).copied() {
                fixture
                    .write_at(handle, offset, &vec![byte; len])
                    .expect("written");
                model.write(number, offset, &vec![byte; len]);
            }
        }
        Step::Drop(index) => {
            if index < model.held.len() {
                fixture.core.release(model.held.swap_remove(index).0);
            }
        }
        Step::Arrive(_, len, byte) => {
            // Not where something local is unpublished or open: that is another story.
            if matches!(model.nodes.get(first), None | Some(Node::File(_))) {
                fixture.runtime.block_on(fixture.core.publish_all());
                let writing = model.held.iter().any(|(_, number, write)| {
                    *write && model.nodes.get(first) == Some(&Node::File(*number))
                });
                if !writing {
                    fixture.change_behind(first, &vec![byte; len]);
                    model
                        .nodes
                        .insert(first.to_owned(), Node::File(model.files.len()));
                    model.files.push(vec![byte; len]);
                }
            }
        }
        Step::Publish => fixture.runtime.block_on(fixture.core.publish_all()),
    }
}

/// Copies as programs have the kernel do it, a part after the other.
fn copy(fixture: &Fixture, from: u64, to: u64, offset: u64, len: usize) -> usize {
    let mut copied = 0;
    while copied < len {
        match copy_some(fixture, from, to, offset + copied as u64, len - copied) {
            0 => break,
            some => copied += some,
        }
    }
    copied
}

/// By reference, or else byte for byte.
fn copy_some(fixture: &Fixture, from: u64, to: u64, offset: u64, len: usize) -> usize {
    let (source, target) = (
        Place {
            handle: from,
            offset,
        },
        Place { handle: to, offset },
    );
    match fixture.act(move |core| core.copy_range(source, target, len as u64)) {
        Ok(copied) => copied as usize,
        Err(libc::EOPNOTSUPP) => {
            let data = fixture.read_at(from, offset, len).expect("read");
            if !data.is_empty() {
                fixture.write_at(to, offset, &data).expect("written");
            }
            data.len()
        }
        Err(error) => panic!("copying: errno {error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn it_does_what_the_model_does(steps in proptest::collection::vec(step(), 1..60)) {
        let fixture = Fixture::new();
        let mut model = Model::default();
        for step in steps {
            apply(&fixture, &mut model, step);
            fixture.core.inodes.lock().check();
        }
        compare(&fixture, &model);
        for (handle, _, _) in std::mem::take(&mut model.held) {
            fixture.core.release(handle);
        }
        fixture.settle();
        compare(&fixture, &model);
        fixture.runtime.block_on(fixture.namespace.flush()).expect("flushed");
        compare(&fixture, &model);
        wait_until("no staging is left", || {
            fixture.store.journaled().expect("journal").is_empty()
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]
    #[test]
    fn threads_that_work_side_by_side_do_not_disturb_each_other(
        steps in proptest::collection::vec(proptest::collection::vec(step(), 1..40), 3),
    ) {
        const FOLDERS: [&str; 3] = ["x", "y", "z"];
        let fixture = Fixture::new();
        for folder in FOLDERS {
            let name = folder.as_bytes().to_vec();
            fixture
                .act(move |core| core.make(CALLER, ROOT, &name, Kind::Directory, 0o755))
                .expect("made");
        }
        let work = |(folder, steps): (&'static str, Vec<Step>)| {
            UNDER.set(folder);
            let mut model = Model::default();
            for step in steps {
                apply(&fixture, &mut model, step);
            }
            compare(&fixture, &model);
            for (handle, _, _) in std::mem::take(&mut model.held) {
                fixture.core.release(handle);
            }
            (folder, model)
        };
        let models = std::thread::scope(|scope| {
            let threads = FOLDERS.into_iter().zip(steps);
            let threads: Vec<_> = threads.map(|each| scope.spawn(move || work(each))).collect();
            let ended = threads.into_iter().map(|thread| thread.join().expect("it ended well"));
            ended.collect::<Vec<_>>()
        });
        fixture.core.inodes.lock().check();
        fixture.settle();
        fixture.runtime.block_on(fixture.namespace.flush()).expect("flushed");
        for (folder, model) in &models {
            UNDER.set(folder);
            compare(&fixture, model);
        }
        UNDER.set("");
    }
}
