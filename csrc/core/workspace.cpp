#include "workspace.h"

#include <cstdlib>
#include <new>

namespace kanerva {

namespace {
constexpr size_t kAlign = 64;
constexpr size_t kFirst = size_t(1) << 20;  // the first block, which serves the usual sizes
constexpr size_t kKept = size_t(32) << 20;  // what a thread keeps between calls
}  // namespace

Workspace& Workspace::of_thread() {
  static thread_local Workspace workspace;
  return workspace;
}

Workspace::~Workspace() {
  for (size_t i = 0; i < count_; ++i) std::free(blocks_[i].data);
}

Workspace::Scope::Scope(Workspace& workspace)
    : workspace_(workspace), block_(workspace.block_), used_(workspace.used_) {
  ++workspace.depth_;
}

Workspace::Scope::~Scope() {
  workspace_.block_ = block_;
  workspace_.used_ = used_;
  if (--workspace_.depth_ == 0) workspace_.trim();
}

void* Workspace::Scope::take_bytes(size_t bytes) {
  Workspace& w = workspace_;
  bytes = (bytes + 2 * kAlign - 1) / kAlign * kAlign;  // slack for whole vectors at the end
  while (w.block_ < w.count_ && w.used_ + bytes > w.blocks_[w.block_].size) {
    ++w.block_;
    w.used_ = 0;
  }
  if (w.block_ == w.count_) {
    const size_t smallest = w.count_ == 0 ? kFirst : 4 * kFirst;
    const size_t size = bytes > smallest ? bytes : smallest;
    if (w.count_ == kBlocks) throw std::bad_alloc();
    char* data = static_cast<char*>(std::aligned_alloc(kAlign, size));
    if (data == nullptr) throw std::bad_alloc();
    w.blocks_[w.count_++] = {data, size};
    w.used_ = 0;
  }
  void* p = w.blocks_[w.block_].data + w.used_;
  w.used_ += bytes;
  return p;
}

// A large problem must not leave its memory behind.
void Workspace::trim() {
  size_t total = 0;
  for (size_t i = 0; i < count_; ++i) total += blocks_[i].size;
  while (count_ > 0 && total > kKept) {
    total -= blocks_[--count_].size;
    std::free(blocks_[count_].data);
  }
  block_ = 0;
  used_ = 0;
}

}  // namespace kanerva
