// The emulator's model of what Hopper adds: products of warpgroups, barriers in shared memory, bulk copies. Part of
// cuda_emulator.h.
//
// Everything asynchronous happens as late as it may: a product when its group is waited for, with the registers and the
// shared memory of that moment, and its accumulators are NaN until then; a bulk copy when its barrier is waited for,
// and its target is NaN until then.
#pragma once

namespace emulator {

// Shared memory's own addresses, which begin at 0.
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) -
                               (static_cast<char*>(dynamic_shared) - kSharedOffset));
}

// Element (row, k) of a matrix of 16-bit elements that a descriptor names: 8 rows make a block of neighbouring rows of
// 128, 64 or 32 bytes, whose 16-byte pieces are swizzled by the bits of the address from the seventh on.
inline uint16_t matrix_element(uint64_t descriptor, int row, int k) {
  const int mode = static_cast<int>(descriptor >> 62);
  if (mode == 0) fail("a matrix without swizzle, of which the emulator has no model");
  if ((descriptor >> 49 & 7) != 0) fail("a matrix with a base offset, of which the emulator has no model");
  const uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  const uint32_t row_bytes = 256u >> mode;
  uint32_t address = start + row / 8 * stride + row % 8 * row_bytes + 2 * k;
  address ^= (address >> 7 & (row_bytes / 16 - 1)) << 4;
  uint16_t element;
  std::memcpy(&element, static_cast<char*>(dynamic_shared) - kSharedOffset + address, sizeof(element));
  return element;
}

// Starts wgmma m64nNk16 with A in registers: c += a b, or a b. Each warp of the group has 16 of its rows, laid out in c
// and a as mma lays them out.
template <int kColumns>
void wgmma(float* c, const uint32_t* a, uint64_t b, bool accumulates) {
  Thread& self = threads[current];
  if (threads.size() % kWarpgroup != 0) fail("a warpgroup's instruction in an incomplete warpgroup");
  if (self.held.count(c) == 0) {
    self.held[c].assign(c, c + kColumns / 2);
    std::memset(c, 0xff, kColumns / 2 * sizeof(float));
  }
  self.products.push_back({c, a, kColumns, b, accumulates, self.product_group});
}

inline void wgmma_commit() { ++threads[current].product_group; }

// Waits until at most `pending` of the committed groups are under way.
template <typename Element>
void wgmma_wait(int pending, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  Thread& self = threads[current];
  const Thread* warp = &threads[current / warpSize * warpSize];
  wait({file, line, 0, warpSize, kFullMask});
  size_t due = 0;
  while (due < self.products.size() && self.products[due].group < self.product_group - pending) ++due;
  const auto pair_of = [&](int row, size_t product, int k) {
    // Row g of a lies in the lanes from 4 g on, and so does row g + 8, in the next register.
    const Thread& lane = warp[row % 8 * 4 + k / 2 % 4];
    float pair[2];
    unpack(lane.products[product].a[row / 8 + k / 8 * 2], pair, Element{});
    return pair[k % 2];
  };
  for (size_t i = 0; i < due; ++i) {
    const Product& product = self.products[i];
    std::vector<float>& held = self.held.at(product.c);
    float a[2][16];
    for (int half = 0; half < 2; ++half) {
      for (int k = 0; k < 16; ++k) a[half][k] = pair_of(lane() / 4 + 8 * half, i, k);
    }
    for (int column = lane() % 4 * 2; column < product.columns; column += column % 2 == 0 ? 1 : 7) {
      double sums[2] = {};
      for (int k = 0; k < 16; ++k) {
        float b[2];
        unpack(matrix_element(product.b, column, k), b, Element{});
        for (int half = 0; half < 2; ++half) sums[half] += static_cast<double>(a[half][k]) * b[0];
      }
      for (int half = 0; half < 2; ++half) {
        float& value = held[column / 8 * 4 + half * 2 + column % 2];
        value = static_cast<float>((product.accumulates ? value : 0.0f) + sums[half]);
      }
    }
  }
  wait({file, line, 1, warpSize, kFullMask});
  self.products.erase(self.products.begin(), self.products.begin() + static_cast<std::ptrdiff_t>(due));
  for (auto it = self.held.begin(); it != self.held.end();) {
    const bool is_under_way = std::any_of(self.products.begin(), self.products.end(),
                                          [&](const Product& product) { return product.c == it->first; });
    if (!is_under_way) std::copy(it->second.begin(), it->second.end(), it->first);
    it = is_under_way ? std::next(it) : self.held.erase(it);
  }
}

// stmatrix.x4.trans: the inverse of ldmatrix of transposed matrices.
inline void stmatrix_transposed(void* row, const uint32_t (&from)[4], const char* file = __builtin_FILE(),
                                int line = __builtin_LINE()) {
  struct Fragments {
    uint32_t bits[4];
  } mine;
  check_aligned(row);
  std::memcpy(&mine, from, sizeof(mine));
  const Together<Fragments> warp(mine, file, line);
  const int matrix = lane() / 8, column = lane() % 8;
  uint16_t elements[8];
  for (int i = 0; i < 8; ++i) {
    elements[i] = static_cast<uint16_t>(warp[i * 4 + column / 2].bits[matrix] >> (16 * (column % 2)));
  }
  std::memcpy(row, elements, sizeof(elements));
}

inline Barrier& barrier_at(const void* address) {
  const auto found = barriers.find(address);
  if (found == barriers.end()) fail("a barrier in shared memory that was not initialised");
  return found->second;
}

inline void barrier_init(void* address, int count) {
  if (reinterpret_cast<uintptr_t>(address) % 8 != 0)
    fail("misaligned: a barrier at an address that is no multiple of 8");
  std::memset(address, 0, 8);
  barriers[address] = {count, count, 0, 0, {}};
}

inline void complete_phase(Barrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.count;
  for (Thread& thread : threads) thread.spins = 0;
}

// Arrives, and expects that many more bytes in this phase.
inline void barrier_arrive(void* address, int64_t bytes) {
  Barrier& barrier = barrier_at(address);
  if (barrier.pending == 0) fail("more arrivals at a barrier than it was made for");
  barrier.bytes += bytes;
  --barrier.pending;
  complete_phase(barrier);
}

inline void bulk_copy(void* to, const void* from, int bytes, void* address) {
  check_aligned(to);
  check_aligned(from);
  if (bytes % 16 != 0) fail("misaligned: a bulk copy of a number of bytes that is no multiple of 16");
  const auto* begin = static_cast<const char*>(from);
  barrier_at(address).copies.push_back({static_cast<char*>(to), {begin, begin + bytes}});
  std::memset(to, 0xff, bytes);
}

// Waits for the end of the phase with this parity: until the barrier is in one with the other.
inline void barrier_wait(void* address, int parity) {
  Barrier& barrier = barrier_at(address);
  Thread& self = threads[current];
  while (barrier.phase == parity) {
    for (const Barrier::BulkCopy& copy : barrier.copies) {
      std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
      barrier.bytes -= static_cast<int64_t>(copy.bytes.size());
    }
    const bool has_copied = !barrier.copies.empty();
    barrier.copies.clear();
    if (has_copied) complete_phase(barrier);
    if (barrier.phase != parity) return;
    if (++self.spins > 100000) fail("a barrier in shared memory whose phase does not end");
    to_scheduler();
  }
}

}  // namespace emulator

// bar.sync of the threads of one warpgroup.
inline void sync_warpgroup(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::wait({file, line, 0, emulator::kWarpgroup, 0});
}
