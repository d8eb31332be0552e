// Runs a program over the tokens of one sequence or many, with a key-value cache and threads of its
// own.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/attention.h"
#include "attention/key_value_cache.h"
#include "linear/linear.h"
#include "memory.h"
#include "program.h"
#include "thread_team.h"
#include "vector/kernels.h"

namespace dsconv {

// How activations are rounded, by the kind of pass.
struct Precisions {
    Precision decode = Precision::int16;   // a few tokens
    Precision prefill = Precision::mixed;  // many tokens, logits of the last
    Precision score = Precision::int16;    // logits of every token
};

struct EngineOptions {
    int threads = 0;  // 0: physical cores
    CacheType cache = CacheType::half;
    const LinearKernels* kernels = nullptr;  // nullptr: the fastest
    Precisions precisions;
    int64_t cache_bytes = 0;  // of keys and values at most; 0: as much as there is
};

// After which tokens of a piece logits are computed.
enum class Want : int64_t { none, last, every };

// Tokens that a sequence gets in a pass.
struct Piece {
    int64_t sequence = 0;
    std::vector<int64_t> tokens;
    Want want = Want::last;
};

class Engine {
   public:
    // Tokens of one pass at most.
    static constexpr int64_t chunk_tokens = 256;

    // `program` refers to memory (the mapped file) that must outlive the engine.
    Engine(Program program, const EngineOptions& options);

    int64_t vocabulary() const { return program_.vocabulary; }
    int64_t position() const { return sequences_[0].length; }
    int threads() const { return team_.size(); }
    const char* kernels() const { return linear_.name; }

    // The sequence of the three functions below is the engine's own.
    // Forgets it and gives its memory back.
    void reset();
    // Forgets all but the first `length` tokens; the memory stays.
    void truncate(int64_t length);
    // Appends tokens (1 to chunk_tokens, each below the vocabulary). logits: none, or room for
    // the last token's [vocabulary], or with `all` for every token's.
    void forward(const std::vector<int64_t>& tokens, float* logits, bool all);

    // Many sequences, by number. Which numbers exist is the caller's to check, by `has`.
    int64_t add();
    int64_t fork(int64_t sequence, int64_t length);
    void drop(int64_t sequence);
    void truncate(int64_t sequence, int64_t length);
    bool has(int64_t sequence) const;
    int64_t length(int64_t sequence) const { return of(sequence).length; }
    int64_t block_positions() const { return segment_positions; }
    int64_t block_bytes() const { return cache_.block_bytes(); }
    int64_t limit_blocks() const { return cache_.limit(); }
    int64_t used_blocks() const { return cache_.used(); }
    // Blocks that the cache lacks for a pass over so many tokens more of each sequence.
    int64_t missing_blocks(const std::vector<Piece>& pieces) const;
    // One pass, at most one piece for a sequence, chunk_tokens in all; activations are rounded as
    // in decoding. logits: [vocabulary] for every token that they are wanted for, in order.
    void step(const std::vector<Piece>& pieces, float* logits);

   private:
    struct Pass;
    using Member = ThreadTeam::Member;

    CachedSequence& of(int64_t sequence) { return sequences_[static_cast<size_t>(sequence)]; }
    const CachedSequence& of(int64_t sequence) const {
        return sequences_[static_cast<size_t>(sequence)];
    }
    int64_t place(CachedSequence sequence);
    // Makes room for the pieces and runs the pass over them.
    void run(const std::vector<Piece>& pieces, Pass& pass);
    void reserve_buffers(int64_t tokens);
    // These run on every member of the team at once.
    void run(const EmbeddingStep& step, const Pass& pass, Member& member);
    void run(const NormStep& step, const Pass& pass, Member& member);
    void run(const LinearStep& step, const Pass& pass, Member& member);
    void run(const AttentionStep& step, const Pass& pass, Member& member);
    void run(const HeadStep& step, const Pass& pass, Member& member);
    std::vector<Activations> quantize(const std::vector<ActivationShape>& shapes,
                                      const float* input, int64_t row_width, const Norm* norm,
                                      float* normed, const int64_t* rows, Member& member);
    void norm_row(const Norm& norm, const float* x, float* out) const;
    int64_t grain(int64_t blocks, int64_t tokens) const;
    void* scratch(const Member& member) {
        return scratch_[static_cast<size_t>(member.index())].as<void>();
    }
    float* buffer(BufferIndex index) { return buffers_[static_cast<size_t>(index)].as<float>(); }
    int64_t width(BufferIndex index) const {
        return program_.buffer_widths[static_cast<size_t>(index)];
    }

    Program program_;
    const LinearKernels& linear_;
    const VectorKernels& vector_;
    Precisions precisions_;
    ThreadTeam team_;
    KeyValueCache cache_;
    std::vector<std::unique_ptr<Attention>> attentions_;  // by layer
    std::vector<std::unique_ptr<RotaryTable>> rotary_;
    std::vector<Memory> buffers_;
    int64_t room_ = 0;  // tokens that the buffers hold
    Memory workspace_;  // quantized activations
    std::vector<Memory> scratch_;  // of the matrix kernels, by member
    AttentionWorkspace attention_workspace_;
    std::vector<CachedSequence> sequences_;  // the first one is the engine's own
    std::vector<int64_t> unused_;            // numbers of sequences that were dropped
    std::vector<bool> there_;
};

}  // namespace dsconv
