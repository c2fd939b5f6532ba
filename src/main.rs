//! The `p2pfs` program; everything is in the library.

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};

/// glibc's allocator keeps what many threads freed: a mount that had served a million files stayed at 7.3 GiB resident, of
/// which 1.2 GiB were in use.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_arena_max_object_size`, in KiB, which the bindings don't name; and what it is unless somebody sets it.
const LARGEST_SHARED: (mi_option_t, c_long) = (45, 2 * 1024 * 1024);
/// Larger blocks come from the kernel: 8 MiB, in KiB.
const SHARED_KIB_MAX: c_long = 8 * 1024;

fn main() -> std::process::ExitCode {
    // mimalloc asks the kernel for huge pages, and of each that a thread touches 2 MiB are resident. Where this can't be set
    // only memory is lost.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // It writes the zeros into what was in use before: of buffers of 16 MiB in which a request takes a few KiB, all is
    // resident then. The kernel's zeros are not there before they are touched.
    let (option, usual) = LARGEST_SHARED;
    // SAFETY: reads and sets a number, before there is a second thread.
    unsafe {
        if mi_option_get(option) == usual {
            mi_option_set(option, SHARED_KIB_MAX);
        }
    }
    p2pfs::cli::run()
}
