// Plain structs one behind the other, as frames carry them, without padding between them.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "base/errors.h"

namespace dllama {

// Writes into room that was made for all of it.
class ByteWriter {
 public:
  explicit ByteWriter(std::span<std::byte> room) : room_(room) {}

  template <typename T>
  void put(const std::vector<T>& items) {
    put(items.data(), items.size() * sizeof(T));
  }
  template <typename T>
  void put_one(const T& item) {
    static_assert(std::is_trivially_copyable_v<T>);
    put(&item, sizeof(item));
  }
  // What is not written yet.
  std::span<std::byte> rest() const { return room_; }

 private:
  void put(const void* data, size_t size) {
    if (size != 0) std::memcpy(room_.data(), data, size);
    room_ = room_.subspan(size);
  }
  std::span<std::byte> room_;
};

// Reads what a peer sent; throws InvalidArgument where it is too short, before any memory is taken for it.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> data) : data_(data) {}

  template <typename T>
  std::vector<T> take(size_t count) {
    require(count <= data_.size() / sizeof(T), "a frame is too short");
    std::vector<T> items(count);
    take(items.data(), count * sizeof(T));
    return items;
  }
  template <typename T>
  T take_one() {
    static_assert(std::is_trivially_copyable_v<T>);
    require(sizeof(T) <= data_.size(), "a frame is too short");
    T item;
    take(&item, sizeof(item));
    return item;
  }
  // What is not read yet.
  std::span<const std::byte> rest() const { return data_; }

 private:
  void take(void* out, size_t size) {
    if (size != 0) std::memcpy(out, data_.data(), size);
    data_ = data_.subspan(size);
  }
  std::span<const std::byte> data_;
};

// A frame that is one struct. Throws InvalidArgument if its length is another.
template <typename T>
T read_one(std::span<const std::byte> frame) {
  require(frame.size() == sizeof(T), "a frame has a wrong length");
  return ByteReader(frame).take_one<T>();
}

}  // namespace dllama
