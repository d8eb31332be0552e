#include "engine.h"

#include <algorithm>
#include <utility>

namespace dsconv {
namespace {

// Passes of at most so many tokens round activations as decoding does.
constexpr int64_t few_tokens = 8;
// Pieces per thread that a matrix is cut into: enough to even out a disturbed thread.
constexpr int64_t pieces_per_thread = 8;

constexpr int64_t blocks_of_many_tokens = 6;

// Activations lie in tiles of so many tokens (linear.h).
constexpr int64_t tile_tokens = 8;

size_t placed_bytes(const ActivationShape& shape) { return (activation_bytes(shape) + 63) / 64 * 64; }

bool operator==(const ActivationShape& a, const ActivationShape& b) {
    return a.tokens == b.tokens && a.cols == b.cols && a.group_size == b.group_size &&
           a.precision == b.precision && a.layout == b.layout;
}

// The distinct activations that some matrices of one input need, and which one each uses.
struct ActivationSet {
    std::vector<ActivationShape> shapes;
    std::vector<size_t> of_matrix;

    size_t bytes() const {
        size_t total = 0;
        for (const ActivationShape& shape : shapes) total += placed_bytes(shape);
        return total;
    }
};

ActivationSet activation_set(const LinearKernels& kernels, const std::vector<LinearView>& views,
                             int64_t tokens, Precision precision) {
    ActivationSet set;
    for (const LinearView& view : views) {
        const ActivationShape shape = activation_shape(kernels, view, tokens, precision);
        size_t index = 0;
        while (index < set.shapes.size() && !(set.shapes[index] == shape)) ++index;
        if (index == set.shapes.size()) set.shapes.push_back(shape);
        set.of_matrix.push_back(index);
    }
    return set;
}

std::vector<LinearView> views_of(const LinearStep& step) {
    std::vector<LinearView> views;
    for (const Matrix& matrix : step.matrices) views.push_back(matrix.view);
    return views;
}

}  // namespace

struct Engine::Pass {
    std::vector<int64_t> ids;
    std::vector<AttentionPiece> pieces;
    std::vector<int64_t> wanted;  // rows whose logits are
    float* logits;
    Precision precision;
    Precision of_head;

    int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
};

Engine::Engine(Program program, const EngineOptions& options)
    : program_(std::move(program)),
      linear_(options.kernels ? *options.kernels : best_linear_kernels()),
      vector_(*vector_kernels(linear_.isa)),
      precisions_(options.precisions),
      team_(options.threads > 0 ? options.threads : default_threads()),
      cache_({}, options.cache, 0),
      buffers_(program_.buffer_widths.size()) {
    std::vector<CacheShape> shapes;
    std::vector<std::pair<const float*, float>> tables;
    for (const Step& step : program_.steps) {
        const auto* attention = std::get_if<AttentionStep>(&step);
        if (!attention) continue;
        const std::pair<const float*, float> table{attention->frequencies,
                                                   attention->rotary_factor};
        const auto found = std::find(tables.begin(), tables.end(), table);
        const auto index = static_cast<size_t>(found - tables.begin());
        if (found == tables.end()) {
            tables.push_back(table);
            const float* end = attention->frequencies + attention->head_dim / 2;
            rotary_.push_back(std::make_unique<RotaryTable>(
                std::vector<float>(attention->frequencies, end), attention->rotary_factor));
        }
        const auto layer = static_cast<size_t>(attention->layer);
        if (shapes.size() <= layer) {
            shapes.resize(layer + 1);
            attentions_.resize(layer + 1);
        }
        shapes[layer] = {attention->kv_heads, attention->head_dim};
        attentions_[layer] = std::make_unique<Attention>(*attention, *rotary_[index]);
    }
    cache_ = KeyValueCache(std::move(shapes), options.cache, options.cache_bytes);
    place({});
    for (int i = 0; i < team_.size(); ++i) scratch_.emplace_back(linear_.scratch_bytes);
}

void Engine::reset() {
    of(0).truncate(cache_, 0);
    cache_.trim();
}

void Engine::truncate(int64_t length) { of(0).truncate(cache_, length); }

int64_t Engine::place(CachedSequence sequence) {
    if (unused_.empty()) {
        sequences_.push_back(std::move(sequence));
        there_.push_back(true);
        unused_.reserve(sequences_.size());  // so that drop() allocates nothing
        return static_cast<int64_t>(sequences_.size()) - 1;
    }
    const int64_t number = unused_.back();
    unused_.pop_back();
    of(number) = std::move(sequence);
    there_[static_cast<size_t>(number)] = true;
    return number;
}

int64_t Engine::add() { return place({}); }

int64_t Engine::fork(int64_t sequence, int64_t length) {
    return place(of(sequence).fork(cache_, length));
}

void Engine::drop(int64_t sequence) {
    of(sequence).truncate(cache_, 0);
    there_[static_cast<size_t>(sequence)] = false;
    unused_.push_back(sequence);
}

void Engine::truncate(int64_t sequence, int64_t length) { of(sequence).truncate(cache_, length); }

bool Engine::has(int64_t sequence) const {
    return sequence > 0 && sequence < static_cast<int64_t>(sequences_.size()) &&
           there_[static_cast<size_t>(sequence)];
}

int64_t Engine::missing_blocks(const std::vector<Piece>& pieces) const {
    int64_t blocks = 0;
    for (const Piece& piece : pieces) {
        const auto tokens = static_cast<int64_t>(piece.tokens.size());
        blocks += of(piece.sequence).missing_blocks(cache_, tokens);
    }
    return blocks;
}

void Engine::reserve_buffers(int64_t tokens) {
    if (tokens <= room_) return;
    for (size_t i = 0; i < buffers_.size(); ++i) {
        buffers_[i] = Memory(static_cast<size_t>(tokens * program_.buffer_widths[i]) * sizeof(float));
    }
    size_t bytes = 0;
    for (const Step& step : program_.steps) {
        for (const Precision precision :
             {precisions_.decode, precisions_.prefill, precisions_.score}) {
            if (const auto* linear = std::get_if<LinearStep>(&step)) {
                bytes = std::max(bytes, activation_set(linear_, views_of(*linear), tokens, precision).bytes());
            } else if (const auto* head = std::get_if<HeadStep>(&step)) {
                bytes = std::max(bytes, activation_set(linear_, {head->matrix}, tokens, precision).bytes());
            }
        }
    }
    workspace_ = Memory(bytes);
    room_ = tokens;
}

void Engine::forward(const std::vector<int64_t>& tokens, float* logits, bool all) {
    const auto count = static_cast<int64_t>(tokens.size());
    Pass pass;
    pass.logits = logits;
    pass.precision = all                    ? precisions_.score
                     : count <= few_tokens ? precisions_.decode
                                            : precisions_.prefill;
    // One row costs nothing beside the matrix: it is always computed in the precision of decoding.
    pass.of_head = all ? precisions_.score : precisions_.decode;
    run({{0, tokens, !logits ? Want::none : all ? Want::every : Want::last}}, pass);
}

void Engine::step(const std::vector<Piece>& pieces, float* logits) {
    Pass pass;
    pass.logits = logits;
    pass.precision = pass.of_head = precisions_.decode;
    run(pieces, pass);
}

void Engine::run(const std::vector<Piece>& pieces, Pass& pass) {
    for (const Piece& piece : pieces) {
        CachedSequence& sequence = of(piece.sequence);
        const auto row = pass.tokens(), count = static_cast<int64_t>(piece.tokens.size());
        sequence.reserve(cache_, count);
        pass.pieces.push_back({&sequence, row, count, sequence.length});
        pass.ids.insert(pass.ids.end(), piece.tokens.begin(), piece.tokens.end());
        const int64_t first = piece.want == Want::every  ? 0
                              : piece.want == Want::last ? count - 1
                                                         : count;
        for (int64_t i = first; i < count; ++i) pass.wanted.push_back(row + i);
    }
    for (auto& attention : attentions_) {
        attention->prepare(pass.pieces, team_.size(), attention_workspace_);
    }
    reserve_buffers(pass.tokens());
    team_.run([&](ThreadTeam::Member& member) {
        for (const Step& step : program_.steps) {
            std::visit([&](const auto& of_kind) { run(of_kind, pass, member); }, step);
        }
    });
    for (const Piece& piece : pieces) {
        of(piece.sequence).length += static_cast<int64_t>(piece.tokens.size());
    }
}

void Engine::norm_row(const Norm& norm, const float* x, float* out) const {
    for (int64_t head = 0; head < norm.heads; ++head) {
        const int64_t start = head * norm.size;
        vector_.rms_norm(x + start, norm.gain, norm.epsilon, norm.size, out + start);
    }
}

void Engine::run(const EmbeddingStep& step, const Pass& pass, Member& member) {
    float* output = buffer(step.output);
    member.share(pass.tokens(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            dequantize_row(step.table, pass.ids[static_cast<size_t>(token)],
                           output + token * width(step.output));
        }
    });
}

void Engine::run(const NormStep& step, const Pass& pass, Member& member) {
    float* rows = buffer(step.buffer);
    const int64_t row_width = width(step.buffer);
    member.share(pass.tokens(), 4, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            norm_row(step.norm, rows + token * row_width, rows + token * row_width);
        }
    });
}

// Quantizes the activations of a linear step, normalised before if `norm` is given. rows: which
// ones of the input (then there is a norm); nullptr: the first ones.
std::vector<Activations> Engine::quantize(const std::vector<ActivationShape>& shapes,
                                          const float* input, int64_t row_width, const Norm* norm,
                                          float* normed, const int64_t* rows, Member& member) {
    uint8_t* place = workspace_.as<uint8_t>();
    std::vector<Activations> placed;
    for (const ActivationShape& shape : shapes) {
        placed.push_back(place_activations(shape, place));
        place += placed_bytes(shape);
    }
    const int64_t tokens = shapes[0].tokens;
    member.share(activation_tiles(shapes[0]), 1, [&](int64_t begin, int64_t end) {
        const float* values = input;
        if (norm) {
            values = normed;
            const int64_t last = std::min(end * tile_tokens, tokens);
            for (int64_t token = begin * tile_tokens; token < last; ++token) {
                const int64_t row = rows ? rows[token] : token;
                norm_row(*norm, input + row * row_width, normed + token * row_width);
            }
        }
        for (const Activations& activations : placed) {
            linear_.quantize(values, row_width, activations, begin, end);
        }
    });
    return placed;
}

void Engine::run(const LinearStep& step, const Pass& pass, Member& member) {
    const ActivationSet set = activation_set(linear_, views_of(step), pass.tokens(), pass.precision);
    const std::vector<Activations> activations =
        quantize(set.shapes, buffer(step.input), width(step.input),
                 step.has_norm ? &step.norm : nullptr,
                 step.has_norm ? buffer(step.normed) : nullptr, nullptr, member);
    auto multiply = [&](size_t index, int64_t first, int64_t last) {
        const Matrix& matrix = step.matrices[index];
        const Epilogue epilogue{matrix.bias, step.combine == Combine::add};
        linear_.linear(matrix.view, activations[set.of_matrix[index]], buffer(matrix.output),
                       width(matrix.output), first, last, epilogue, scratch(member));
    };
    if (step.combine == Combine::silu_multiply) {
        const int64_t blocks = linear_blocks_of(step.matrices[0].view);
        const int64_t rows = step.matrices[0].view.rows;
        const int64_t gate_width = width(step.matrices[0].output);
        const int64_t up_width = width(step.matrices[1].output);
        float *gate = buffer(step.matrices[0].output), *up = buffer(step.matrices[1].output);
        member.share(blocks, grain(blocks, pass.tokens()), [&](int64_t begin, int64_t end) {
            multiply(0, begin, end);
            multiply(1, begin, end);
            const int64_t first = begin * block_rows, last = std::min(end * block_rows, rows);
            for (int64_t token = 0; token < pass.tokens(); ++token) {
                vector_.silu_multiply(gate + token * gate_width + first,
                                      up + token * up_width + first, last - first);
            }
        });
        return;
    }
    int64_t blocks = 0;
    for (const Matrix& matrix : step.matrices) blocks += linear_blocks_of(matrix.view);
    member.share(blocks, grain(blocks, pass.tokens()), [&](int64_t begin, int64_t end) {
        int64_t start = 0;  // of the matrix in the row of all blocks
        for (size_t index = 0; index < step.matrices.size(); ++index) {
            const int64_t count = linear_blocks_of(step.matrices[index].view);
            const int64_t first = std::max<int64_t>(begin - start, 0);
            const int64_t last = std::min(end - start, count);
            if (first < last) multiply(index, first, last);
            start += count;
        }
    });
}

void Engine::run(const AttentionStep& step, const Pass&, Member& member) {
    const AttentionRows rows{buffer(step.query), buffer(step.key), buffer(step.value),
                             buffer(step.output)};
    attentions_[static_cast<size_t>(step.layer)]->run(rows, member, cache_, vector_,
                                                      attention_workspace_);
}

void Engine::run(const HeadStep& step, const Pass& pass, Member& member) {
    if (pass.wanted.empty()) return;
    const auto tokens = static_cast<int64_t>(pass.wanted.size());
    const ActivationShape shape = activation_shape(linear_, step.matrix, tokens, pass.of_head);
    const std::vector<Activations> activations =
        quantize({shape}, buffer(step.input), width(step.input), &step.norm, buffer(step.normed),
                 pass.wanted.data(), member);
    const int64_t blocks = linear_blocks_of(step.matrix);
    member.share(blocks, grain(blocks, tokens), [&](int64_t begin, int64_t end) {
        linear_.linear(step.matrix, activations[0], pass.logits, step.matrix.rows, begin, end, {},
                       scratch(member));
    });
}

// Blocks that a thread takes at a time. With many tokens a few are work enough, and kernels take
// two or three of them at once.
int64_t Engine::grain(int64_t blocks, int64_t tokens) const {
    if (team_.size() == 1) return blocks;
    if (tokens > few_tokens) return blocks_of_many_tokens;
    const int64_t pieces = team_.size() * pieces_per_thread;
    return std::max<int64_t>(1, (blocks + pieces - 1) / pieces);
}

}  // namespace dsconv
