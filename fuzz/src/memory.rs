//! How much memory is in use: libFuzzer knows the size of the process only, and looks at it once a second.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// Of this thread: the tests run beside one another. Without destructors, so that they may be used by an allocator.
thread_local! {
    static IN_USE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends may give back memory after its counters are gone; nobody asks for them any more.
    let _ = IN_USE.try_with(|in_use| {
        in_use.set(in_use.get() + bytes);
        PEAK.with(|peak| peak.set(peak.get().max(in_use.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps to the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps to the contract of `dealloc`, and `memory` came from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes as isize - layout.size() as isize);
        // SAFETY: the caller keeps to the contract of `realloc`, and `memory` came from the system's allocator.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

/// Bytes that this thread has in use; the peak is counted from here.
pub(crate) fn begin() -> isize {
    let in_use = IN_USE.get();
    PEAK.set(in_use);
    in_use
}

/// Most bytes that were in use at once, beyond those of `begin`.
pub(crate) fn peak_since(begin: isize) -> usize {
    usize::try_from(PEAK.get() - begin).unwrap_or_default()
}
