#include "base/os_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/errors.h"

namespace dllama {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Huge pages save a nested page walk every 4 KiB. DLLAMA_HUGE_PAGES=0 is there to measure what they bring.
bool huge_pages_wanted() {
  const char* setting = std::getenv("DLLAMA_HUGE_PAGES");
  return setting == nullptr || std::strcmp(setting, "0") != 0;
}

}  // namespace

Buffer::Buffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  if (bytes > SIZE_MAX - slack) throw OutOfMemory("cannot reserve " + std::to_string(bytes) + " bytes");
  mapping_bytes_ = bytes + slack;
  mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw OutOfMemory("the system refused " + std::to_string(bytes >> 20) + " MiB of memory");
  }
  auto address = reinterpret_cast<uintptr_t>(mapping_);
  if (slack != 0) address = (address + kHugePage - 1) / kHugePage * kHugePage;
  data_ = reinterpret_cast<std::byte*>(address);
#ifdef MADV_HUGEPAGE
  if (slack != 0 && huge_pages_wanted()) madvise(data_, bytes, MADV_HUGEPAGE);  // a refusal costs speed only
#endif
}

Buffer::~Buffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

}  // namespace dllama
