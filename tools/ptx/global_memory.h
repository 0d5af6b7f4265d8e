// Buffers in global memory whose bounds are known.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace ptx {

struct Buffer {
  uint64_t begin = 0, end = 0;
  std::vector<uint8_t> written;  // byte by byte; empty: all of it was written by the host
};

class GlobalMemory {
 public:
  void add(uint64_t begin, uint64_t bytes, bool written) {
    Buffer b{begin, begin + bytes, {}};
    if (!written) b.written.assign(bytes, 0);
    buffers_[begin] = std::move(b);
    last_ = nullptr;
  }
  void remove(uint64_t begin) {
    buffers_.erase(begin);
    last_ = nullptr;
  }
  // Where no buffer was ever named, nothing is known of bounds.
  bool is_known() const { return !buffers_.empty(); }
  // The buffer with all of these bytes, or null.
  Buffer* find(uint64_t address, unsigned bytes) {
    const auto holds = [&](const Buffer& b) {
      return address >= b.begin && address + bytes <= b.end;
    };
    if (last_ && holds(*last_)) return last_;
    auto after = buffers_.upper_bound(address);
    if (after == buffers_.begin()) return nullptr;
    Buffer& b = std::prev(after)->second;
    if (!holds(b)) return nullptr;
    return last_ = &b;
  }

 private:
  std::map<uint64_t, Buffer> buffers_;
  Buffer* last_ = nullptr;
};

}  // namespace ptx
