// Large zeroed memory straight from the operating system, in huge pages where it grants them.
#pragma once

#include <cstddef>
#include <utility>

namespace dllama {

// Owns zeroed memory aligned to 2 MiB (to a page if smaller). Nothing is resident until touched, so the thread that
// will read a part should be the first to write it.
class Buffer {
 public:
  Buffer() = default;
  // Throws OutOfMemory if the system refuses. `bytes` may be 0.
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapping_, other.mapping_);
    std::swap(mapping_bytes_, other.mapping_bytes_);
  }

  std::byte* data_ = nullptr;
  size_t size_ = 0;
  void* mapping_ = nullptr;  // what the system gave; data_ is the first aligned address in it
  size_t mapping_bytes_ = 0;
};

}  // namespace dllama
