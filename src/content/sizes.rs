//! Content sizes at which something changes, shared by all tests that depend on geometry.

/// Sizes in bytes around every boundary of the chunk, the inline limit, the page, the block and the tree's shape.
#[rustfmt::skip] // a comment a line
pub(crate) const INTERESTING_SIZES: &[u64] = &[
    0, 1,
    1023, 1024, 1025,                // a BLAKE3 chunk, above which there are inner nodes, all below block level
    4095, 4096, 4097,                // the inline limit, which is also a page
    65_535, 65_536, 65_537,          // a block, above which the hash tree has nodes
    131_071, 131_072, 131_073,       // two blocks: one node
    196_607, 196_608, 196_609,       // three blocks: the first lopsided tree
    262_143, 262_144, 262_145,       // four blocks: a full tree
    327_679, 327_680, 327_681,       // five blocks: the root's right side is a lone block
    458_751,                         // seven blocks: lopsided at all levels, the last block short
    524_287, 524_288, 524_289,       // eight blocks
    1_048_575, 1_048_576, 1_048_577, // 1 MiB: sixteen blocks, the range peers like to ask for
    1_049_600, 1_049_601,            // 1 MiB and a chunk
    2_097_151, 2_097_152, 2_097_153, // thirty-two blocks
    2_162_688, 2_162_689,            // thirty-three blocks
];
