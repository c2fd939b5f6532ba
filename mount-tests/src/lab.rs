//! A few hosts on one bridge.

use std::{
    cell::{Cell, RefCell},
    fs,
    path::PathBuf,
    thread,
};

use crate::{
    Host,
    host::tail,
    system::{clear, dir_of, ip, new_tag, require},
};

/// The bridge that hosts are plugged into.
const BRIDGE: &str = "bridge";
/// The one for those that are apart from the rest.
const APART: &str = "apart";

/// Hosts on one network. Everything of it goes when it is dropped.
pub struct Lab {
    tag: String,
    dir: PathBuf,
    hosts: RefCell<Vec<Host>>,
    may_log_errors: Cell<bool>,
}

impl Lab {
    /// An empty network.
    ///
    /// # Panics
    /// With what to do, where the machine cannot run these tests.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        require();
        let tag = new_tag();
        let dir = dir_of(&tag);
        fs::create_dir(&dir).expect("the temporary directory can be written");
        let lab = Self {
            dir,
            hosts: RefCell::default(),
            may_log_errors: Cell::new(false),
            tag,
        };
        let hub = lab.hub();
        for command in [
            format!("netns add {hub}"),
            format!("-n {hub} link add {BRIDGE} type bridge"),
            format!("-n {hub} link set {BRIDGE} up"),
            format!("-n {hub} link add {APART} type bridge"),
            format!("-n {hub} link set {APART} up"),
        ] {
            run_ip(&command);
        }
        lab
    }

    /// The test harms a disk: errors in logs are what it is about.
    pub fn expects_errors(&self) {
        self.may_log_errors.set(true);
    }

    /// Another host, by a short name; `10.77.0.1` is the first one's address.
    pub fn host(&self, name: &str) -> Host {
        let number = self.hosts.borrow().len() + 1;
        let hub = self.hub();
        let namespace = format!("{}-{name}", self.tag);
        let address = format!("10.77.0.{number}");
        for command in [
            format!("netns add {namespace}"),
            format!("link add eth0 netns {namespace} type veth peer name port{number} netns {hub}"),
            format!("-n {hub} link set port{number} master {BRIDGE}"),
            format!("-n {hub} link set port{number} up"),
            format!("-n {namespace} addr add {address}/24 dev eth0"),
            format!("-n {namespace} link set eth0 up"),
            format!("-n {namespace} link set lo up"),
        ] {
            run_ip(&command);
        }
        let port = (hub, format!("port{number}"));
        let host = Host::new(name, namespace, address, port, &self.dir);
        self.hosts.borrow_mut().push(host.clone());
        host
    }

    /// Cuts the network in two: these hosts reach each other and nobody else. No link goes down: what is sent to the other
    /// side is lost without a word, as behind a switch that failed.
    pub fn split_off(&self, hosts: &[&Host]) {
        hosts.iter().for_each(|host| host.plug_into(APART));
    }

    /// Makes one network of it again.
    pub fn heal(&self) {
        self.hosts
            .borrow()
            .iter()
            .for_each(|host| host.plug_into(BRIDGE));
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.tag)
    }
}

#[track_caller]
fn run_ip(command: &str) {
    let words: Vec<_> = command.split(' ').collect();
    if let Err(error) = ip(&words) {
        panic!("{error}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut errors = Vec::new();
        for host in self.hosts.borrow().iter() {
            for log in host.logs() {
                if thread::panicking() {
                    eprintln!("--- {}, {}:\n{}", host.name(), log.display(), tail(&log));
                }
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines = text.lines().filter(|line| line.contains(" ERROR "));
                errors.extend(lines.map(|line| format!("{}: {line}", host.name())));
            }
        }
        clear(&self.tag);
        // An error in a log is for what this machine failed at; few tests of this suite break a machine.
        if !thread::panicking() {
            let may = self.may_log_errors.get();
            assert!(may || errors.is_empty(), "errors were logged: {errors:#?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use rustix::process::Pid;

    use super::*;
    use crate::system::runs;

    #[test]
    fn hosts_reach_each_other_until_one_is_cut_off_and_bytes_are_counted() {
        let lab = Lab::new();
        let (a, b) = (lab.host("a"), lab.host("b"));
        let listener = a.inside(|| TcpListener::bind(("10.77.0.1", 4001)).unwrap());
        let server = thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                stream.unwrap().write_all(&[7; 100_000]).unwrap();
            }
        });
        let address = (a.ip(), 4001);
        let fetch = move || -> std::io::Result<usize> {
            let mut bytes = Vec::new();
            let mut stream =
                TcpStream::connect_timeout(&address.into(), Duration::from_millis(300))?;
            stream.read_to_end(&mut bytes)
        };
        let before = b.received();
        assert_eq!(b.inside(fetch).unwrap(), 100_000);
        let moved = b.received() - before;
        assert!((100_000..120_000).contains(&moved), "{moved}");
        a.cut_off();
        assert!(b.inside(fetch).is_err());
        a.reconnect();
        crate::eventually(crate::SOON, "the line is back", || b.inside(fetch));
        server.join().unwrap();
    }

    #[test]
    fn a_split_network_carries_nothing_across_until_it_heals() {
        let lab = Lab::new();
        let (a, b, c) = (lab.host("a"), lab.host("b"), lab.host("c"));
        let listeners = [&a, &b].map(|host| {
            let address = (host.ip(), 4001);
            host.inside(move || TcpListener::bind(address).unwrap())
        });
        let reach = |from: &Host, to: &Host| {
            let address = (to.ip(), 4001).into();
            from.inside(move || {
                TcpStream::connect_timeout(&address, Duration::from_millis(300)).map(drop)
            })
        };
        lab.split_off(&[&b, &c]);
        assert!(reach(&c, &a).is_err());
        reach(&c, &b).unwrap();
        lab.heal();
        crate::eventually(crate::SOON, "the network is one", || reach(&c, &a));
        drop(listeners);
    }

    #[test]
    fn a_lab_leaves_no_namespace_process_or_directory_behind() {
        let lab = Lab::new();
        let (tag, dir) = (lab.tag.clone(), lab.dir.clone());
        let a = lab.host("a");
        let daemon = a.sh("setsid sleep 1000 > /dev/null 2>&1 & echo $!");
        let daemon = Pid::from_raw(daemon.parse().unwrap()).unwrap();
        assert!(runs(daemon));
        assert!(dir.exists());
        drop(lab);
        assert!(!runs(daemon));
        assert!(!dir.exists());
        assert!(!ip(&["netns", "list"]).unwrap().contains(&tag));
    }

    #[test]
    #[should_panic(expected = "not done within")]
    fn a_command_that_takes_too_long_fails_the_test() {
        let lab = Lab::new();
        let a = lab.host("a");
        let mut command = a.command("sleep");
        command.arg("1000");
        crate::run::run(a.lab(), "sleep", command, Duration::from_millis(100));
    }
}
