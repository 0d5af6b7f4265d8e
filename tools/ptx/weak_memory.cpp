#include "weak_memory.h"

#include <cstring>

namespace ptx {

namespace {

bool is_dirty(const StoreBuffer::Page& page, uint64_t at) {
  return page.dirty[at / 64] >> (at % 64) & 1;
}

uint8_t* memory(uint64_t address) { return reinterpret_cast<uint8_t*>(address); }

}  // namespace

StoreBuffer::Page* StoreBuffer::find(uint64_t number) {
  if (number == last_number) return last;
  const auto at = pages.find(number);
  last_number = number;
  last = at == pages.end() ? nullptr : at->second.get();
  return last;
}

WeakMemory::History* WeakMemory::find(uint64_t number, bool make) {
  if (number == last_number_ && (last_ || !make)) return last_;
  auto at = pages_.find(number);
  if (at == pages_.end() && make) at = pages_.emplace(number, std::make_unique<History>()).first;
  last_number_ = number;
  last_ = at == pages_.end() ? nullptr : at->second.get();
  return last_;
}

void WeakMemory::load(StoreBuffer& block, uint32_t id, uint64_t address, unsigned bytes,
                      uint8_t* to) {
  std::memcpy(to, memory(address), bytes);
  const uint64_t number = address / kPageBytes, start = address % kPageBytes;
  if (History* history = find(number, false)) {
    for (unsigned i = 0; i < bytes; i += 4) {
      const uint64_t at = start + i, word = at / 4;
      const uint64_t version = history->version[word];
      if (version <= block.acquired || history->writer[word] == id) continue;
      uint64_t& looked = history->looked[uint64_t(id) << 32 | word];
      if (looked >= version) continue;  // never back to what was before
      looked = version;
      random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
      if (random_ >> 33 & 1) continue;  // what is there now
      std::memcpy(to + i, &history->before[at], bytes < 4 ? bytes : 4);
    }
  }
  if (const StoreBuffer::Page* page = block.find(number)) {
    for (unsigned i = 0; i < bytes; ++i)
      if (is_dirty(*page, start + i)) to[i] = page->data[start + i];
  }
  for (const StoreBuffer::Late& l : block.late) {
    for (unsigned i = 0; i < bytes; ++i)
      if (address + i >= l.address && address + i < l.address + l.bytes)
        to[i] = l.data[size_t(address + i - l.address)];
  }
}

void WeakMemory::store(StoreBuffer& block, uint32_t id, uint64_t address, unsigned bytes,
                       const uint8_t* from, bool strong) {
  settle(block, id, address, strong ? bytes : 0);  // in the order of the block's own writes
  if (strong) {
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
    if (random_ >> 40 & 1) {
      write_through(id, address, bytes, from);
    } else {
      block.late.push_back({address, bytes, {}});
      std::memcpy(block.late.back().data.data(), from, bytes);
    }
    return;
  }
  const uint64_t number = address / kPageBytes, start = address % kPageBytes;
  StoreBuffer::Page* page = block.find(number);
  if (!page) {
    page = (block.pages[number] = std::make_unique<StoreBuffer::Page>()).get();
    block.last_number = number, block.last = page;
  }
  std::memcpy(&page->data[start], from, bytes);
  for (uint64_t at = start; at < start + bytes; ++at)
    page->dirty[at / 64] |= uint64_t(1) << (at % 64);
}

void WeakMemory::before_write(uint32_t id, uint64_t address, unsigned bytes) {
  History& history = *find(address / kPageBytes, true);
  ++version_;
  for (uint64_t at = address % kPageBytes / 4 * 4, end = address % kPageBytes + bytes; at < end;
       at += 4) {
    std::memcpy(&history.before[at], memory(address / kPageBytes * kPageBytes + at), 4);
    history.version[at / 4] = version_;
    history.writer[at / 4] = id;
  }
}

void WeakMemory::write_through(uint32_t id, uint64_t address, unsigned bytes, const uint8_t* from) {
  before_write(id, address, bytes);
  std::memcpy(memory(address), from, bytes);
}

void WeakMemory::settle(StoreBuffer& block, uint32_t id, uint64_t address, unsigned bytes) {
  for (size_t k = 0; k < block.late.size();) {
    const StoreBuffer::Late l = block.late[k];
    if (l.address < address + (bytes ? bytes : 16) && address < l.address + l.bytes) {
      block.late.erase(block.late.begin() + ptrdiff_t(k));
      write_through(id, l.address, l.bytes, l.data.data());
    } else {
      ++k;
    }
  }
  StoreBuffer::Page* page = bytes ? block.find(address / kPageBytes) : nullptr;
  if (!page) return;
  const uint64_t start = address % kPageBytes;
  for (unsigned i = 0, n = 0; i < bytes; i += n) {  // runs of bytes, so that words stay whole
    for (n = 0; i + n < bytes && is_dirty(*page, start + i + n); ++n)
      page->dirty[(start + i + n) / 64] &= ~(uint64_t(1) << ((start + i + n) % 64));
    if (n > 0) write_through(id, address + i, n, &page->data[start + i]);
    if (n == 0) n = 1;
  }
}

void WeakMemory::drain(StoreBuffer& block, uint32_t id) {
  while (!block.late.empty()) {
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
    const size_t k = size_t(random_ >> 20) % block.late.size();
    const StoreBuffer::Late l = block.late[k];
    block.late.erase(block.late.begin() + ptrdiff_t(k));
    write_through(id, l.address, l.bytes, l.data.data());
  }
}

void WeakMemory::flush(StoreBuffer& block, uint32_t id) {
  for (auto& [number, page] : block.pages) {
    for (size_t word = 0; word < page->dirty.size(); ++word) {
      uint64_t bits = page->dirty[word];
      while (bits != 0) {  // runs of bytes
        const int first = __builtin_ctzll(bits);
        const uint64_t rest = ~(bits >> first);
        const int length = rest == 0 ? 64 - first : __builtin_ctzll(rest);
        const uint64_t at = word * 64 + uint64_t(first);
        write_through(id, number * kPageBytes + at, unsigned(length), &page->data[at]);
        bits &= first + length >= 64 ? 0 : ~uint64_t(0) << (first + length);
      }
    }
  }
  block.pages.clear();
  block.last_number = ~uint64_t(0), block.last = nullptr;
  drain(block, id);
}

}  // namespace ptx
