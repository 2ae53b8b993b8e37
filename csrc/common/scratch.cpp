#include "common/scratch.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <vector>

namespace mixer_kernels {
namespace {

struct Block {
  void* data;
  size_t size;
};

// The blocks that a thread does not use, the one it gave up last at the end.
class Pool {
 public:
  ~Pool() { shrink_to(0); }

  // The smallest block that is large enough without being much too large.
  Block take(size_t size) {
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      if (block->size >= size && block->size <= 2 * size && (best == blocks_.end() || block->size < best->size)) {
        best = block;
      }
    }
    if (best == blocks_.end()) return {c10::alloc_cpu(size), size};
    const Block taken = *best;
    blocks_.erase(best);
    kept_ -= taken.size;
    return taken;
  }

  void keep(Block block) {
    blocks_.push_back(block);
    kept_ += block.size;
    shrink_to(kMost);
  }

 private:
  static constexpr size_t kMost = size_t{8} << 20;

  void shrink_to(size_t most) {
    auto first_kept = blocks_.begin();
    for (; kept_ > most; ++first_kept) {
      kept_ -= first_kept->size;
      c10::free_cpu(first_kept->data);
    }
    blocks_.erase(blocks_.begin(), first_kept);
  }

  std::vector<Block> blocks_;
  size_t kept_ = 0;
};

thread_local Pool pool;

}  // namespace

ScratchMemory::ScratchMemory(size_t size) {
  if (size == 0) return;
  const Block block = pool.take(size);
  data_ = block.data;
  size_ = block.size;
  c10::profiledCPUMemoryReporter().New(data_, size_);
}

ScratchMemory::~ScratchMemory() {
  if (data_ == nullptr) return;
  c10::profiledCPUMemoryReporter().Delete(data_);
  pool.keep({data_, size_});
}

}  // namespace mixer_kernels
