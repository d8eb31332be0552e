// Memory for kernels (aligned, not initialised) and a file mapped for reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dsconv {

// 64-byte aligned; large pieces are aligned to, and ask for, huge pages.
class Memory {
   public:
    Memory() = default;
    explicit Memory(size_t size);
    ~Memory();
    Memory(Memory&& other) noexcept;
    Memory& operator=(Memory&& other) noexcept;

    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }
    size_t size() const { return size_; }

   private:
    void free();

    std::byte* data_ = nullptr;
    size_t size_ = 0;
    size_t alignment_ = 0;
};

// A whole file, read-only. Its pages are shared with every process that maps it.
class MappedFile {
   public:
    // Throws std::runtime_error with the system's reason.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const uint8_t* data() const { return data_; }
    uint64_t size() const { return size_; }

   private:
    const uint8_t* data_ = nullptr;
    uint64_t size_ = 0;
};

}  // namespace dsconv
