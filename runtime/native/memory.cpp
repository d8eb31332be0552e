#include "memory.h"

#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace dsconv {
namespace {

constexpr size_t huge_page = size_t{1} << 21;

}  // namespace

Memory::Memory(size_t size) : size_(size), alignment_(size >= 2 * huge_page ? huge_page : 64) {
    data_ = static_cast<std::byte*>(::operator new(size, std::align_val_t{alignment_}));
#if defined(__linux__)
    if (alignment_ == huge_page) madvise(data_, size, MADV_HUGEPAGE);
#endif
}

void Memory::free() {
    if (data_) ::operator delete(data_, std::align_val_t{alignment_});
}

Memory::~Memory() { free(); }

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      alignment_(other.alignment_) {}

Memory& Memory::operator=(Memory&& other) noexcept {
    if (this != &other) {
        free();
        data_ = std::exchange(other.data_, nullptr);
        size_ = std::exchange(other.size_, 0);
        alignment_ = other.alignment_;
    }
    return *this;
}

#if defined(_WIN32)

MappedFile::MappedFile(const std::string& path) {
    const int length = MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, nullptr, 0);
    std::wstring wide(static_cast<size_t>(length), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, wide.data(), length);
    const HANDLE file = CreateFileW(wide.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr,
                                    OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file == INVALID_HANDLE_VALUE) throw std::runtime_error("cannot be opened");
    LARGE_INTEGER size;
    const HANDLE mapping = GetFileSizeEx(file, &size)
                               ? CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr)
                               : nullptr;
    CloseHandle(file);
    if (!mapping) throw std::runtime_error("cannot be mapped");
    data_ = static_cast<const uint8_t*>(MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0));
    CloseHandle(mapping);
    if (!data_) throw std::runtime_error("cannot be mapped");
    size_ = static_cast<uint64_t>(size.QuadPart);
}

MappedFile::~MappedFile() { UnmapViewOfFile(data_); }

#else

MappedFile::MappedFile(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) throw std::runtime_error(std::strerror(errno));
    struct stat status;
    void* data = MAP_FAILED;
    if (fstat(file, &status) == 0 && status.st_size > 0) {
        size_ = static_cast<uint64_t>(status.st_size);
        data = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
    }
    const int reason = errno;
    close(file);
    if (data == MAP_FAILED) {
        throw std::runtime_error(size_ ? std::strerror(reason) : "is empty");
    }
    data_ = static_cast<const uint8_t*>(data);
}

MappedFile::~MappedFile() { munmap(const_cast<uint8_t*>(data_), size_); }

#endif

}  // namespace dsconv
