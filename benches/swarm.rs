//! A file to many readers at the same time, over shaped links, in virtual time: how long it takes beside the bound of Kumar and Ross
//! (2006), what the source sends, and what comes twice. The same figures on every machine.
//!
//!     cargo bench --bench swarm -- [READERS]
//!
//! With a number of readers (say 500) the last rows are run with so many; without, with 64. Memory and time go with their square.

use std::time::{Duration, Instant};

use p2pfs::{content, transfer};

#[path = "../src/transfer/scheduler/swarm.rs"]
mod swarm;

use swarm::{Member, Rate, Swarm, bound};

const LONGEST: Duration = Duration::from_secs(3600);

fn group(readers: usize, megabits: u64) -> Vec<Member> {
    let rate = Rate::megabits(megabits);
    let mut members = vec![Member::source(rate)];
    members.resize(1 + readers, Member::reader(rate));
    members
}

fn show(name: &str, members: &[Member], mib: u64) {
    let began = Instant::now();
    let bytes = mib << 20;
    let outcome = Swarm::new(1, bytes / content::BLOCK_BYTES, members).run(LONGEST);
    let (took, bound) = (
        outcome.took().as_secs_f64(),
        bound(members, bytes).as_secs_f64(),
    );
    let first = outcome.done_at.first().map_or(0.0, Duration::as_secs_f64);
    println!(
        "| {name} | {mib} | {bound:.1} | {first:.1} / {took:.1} | {:.2} | {:.2} | {:.3} | {} / {} / {} | {} | {:.1} |",
        took / bound,
        outcome.source_copies,
        outcome.received,
        outcome.hedges,
        outcome.dropped,
        outcome.failed.len(),
        outcome.told,
        began.elapsed().as_secs_f64(),
    );
}

/// Every eighth of the readers slow, every sixteenth with a failing link, and beside them some that lie and some that go.
fn troubled(readers: usize) -> Vec<Member> {
    let mut members = group(readers, 100);
    for (at, member) in members.iter_mut().enumerate().skip(1) {
        let rate = |megabits| Rate::megabits(megabits);
        match at % 16 {
            3 | 11 => (member.up, member.down) = (rate(10), rate(50)),
            5 => {
                member.up.then = Some((Duration::from_secs(1), 250_000));
            }
            7 => member.reads_at = Some(Duration::from_secs(2)),
            8 => {
                let leaves = Duration::from_millis(100 * at as u64 % 5000);
                member.gone = Some(leaves..leaves + Duration::from_secs(5));
            }
            9 => (member.lies, member.reads_at) = (true, None),
            _ => {}
        }
    }
    members
}

fn main() {
    let asked = std::env::args().skip(1).find_map(|word| word.parse().ok());
    let many: usize = asked.unwrap_or(64);
    println!(
        "| members | MiB | bound, s | first / last done, s | × bound | copies sent by the source | received / lacked | hedges / dropped / failed | announcements sent | real s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    show("1 reader, 100 Mbit/s", &group(1, 100), 64);
    show("2 readers, 100 Mbit/s", &group(2, 100), 64);
    for mib in [8, 32, 128] {
        show("4 readers, 200 Mbit/s", &group(4, 200), mib);
    }
    for mib in [8, 32, 128] {
        show("16 readers, 100 Mbit/s", &group(16, 100), mib);
    }
    let mut members = group(8, 100);
    for member in &mut members[1..] {
        member.up = Rate::megabits(20);
    }
    show("8 readers, 100 Mbit/s down, 20 up", &members, 64);
    let mut members = group(8, 100);
    members[0] = Member::source(Rate::megabits(1000));
    show("8 readers, 100 Mbit/s, the source 1000", &members, 64);
    show("8 readers, 1000 Mbit/s", &group(8, 1000), 256);
    let mut members = group(8, 100);
    for member in &mut members {
        member.latency = Duration::from_millis(30);
    }
    show("8 readers, 100 Mbit/s, 120 ms apart", &members, 64);
    show("16, slow, failing, lying, leaving", &troubled(16), 64);
    show(
        &format!("{many} readers, 100 Mbit/s"),
        &group(many, 100),
        32,
    );
    show(
        &format!("{many}, slow, failing, lying, leaving"),
        &troubled(many),
        32,
    );
}
