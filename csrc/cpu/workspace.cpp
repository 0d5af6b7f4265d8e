#include "workspace.h"

#include <cstdlib>
#include <new>

// Under AddressSanitizer what is not taken is out of bounds, with a gap after every piece, and what
// is taken starts as NaN.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KANERVA_CHECKED
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define KANERVA_CHECKED
#endif
#ifdef KANERVA_CHECKED
#include <sanitizer/asan_interface.h>

#include <cstring>
#endif

namespace kanerva {

namespace {
#ifdef KANERVA_CHECKED
constexpr size_t kGap = 64;
void close(void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
void open(void* p, size_t bytes) {
  __asan_unpoison_memory_region(p, bytes);
  std::memset(p, 0xff, bytes);
}
#else
constexpr size_t kGap = 0;
void close(void*, size_t) {}
void open(void*, size_t) {}
#endif

constexpr size_t kAlign = 64;
constexpr size_t kFirst = size_t(1) << 20;  // the first block, which serves the usual sizes
constexpr size_t kKept = size_t(32) << 20;  // what a thread keeps between calls
}  // namespace

Workspace& Workspace::of_thread() {
  static thread_local Workspace workspace;
  return workspace;
}

Workspace::~Workspace() {
  for (size_t i = 0; i < count_; ++i) release(blocks_[i]);
}

void Workspace::release(const Block& block) {
  open(block.data, block.size);
  std::free(block.data);
}

Workspace::Scope::Scope(Workspace& workspace)
    : workspace_(workspace), block_(workspace.block_), used_(workspace.used_) {
  ++workspace.depth_;
}

Workspace::Scope::~Scope() {
  for (size_t i = block_; i < workspace_.count_; ++i) {
    const size_t from = i == block_ ? used_ : 0;
    close(workspace_.blocks_[i].data + from, workspace_.blocks_[i].size - from);
  }
  workspace_.block_ = block_;
  workspace_.used_ = used_;
  if (--workspace_.depth_ == 0) workspace_.trim();
}

void* Workspace::Scope::take_bytes(size_t bytes) {
  Workspace& w = workspace_;
  bytes = (bytes + 2 * kAlign - 1) / kAlign * kAlign;  // slack for whole vectors at the end
  const size_t needed = bytes + kGap;
  while (w.block_ < w.count_ && w.used_ + needed > w.blocks_[w.block_].size) {
    ++w.block_;
    w.used_ = 0;
  }
  if (w.block_ == w.count_) {
    const size_t smallest = w.count_ == 0 ? kFirst : 4 * kFirst;
    const size_t size = needed > smallest ? needed : smallest;
    if (w.count_ == kBlocks) throw std::bad_alloc();
    char* data = static_cast<char*>(std::aligned_alloc(kAlign, size));
    if (data == nullptr) throw std::bad_alloc();
    close(data, size);
    w.blocks_[w.count_++] = {data, size};
    w.used_ = 0;
  }
  void* p = w.blocks_[w.block_].data + w.used_;
  w.used_ += needed;
  open(p, bytes);
  return p;
}

// A large problem must not leave its memory behind.
void Workspace::trim() {
  size_t total = 0;
  for (size_t i = 0; i < count_; ++i) total += blocks_[i].size;
  while (count_ > 0 && total > kKept) {
    total -= blocks_[--count_].size;
    release(blocks_[count_]);
  }
  block_ = 0;
  used_ = 0;
}

}  // namespace kanerva
