/*
 * Executes recorded blocks on an AArch64 Linux, real or under qemu-aarch64: the oracle of `emulator/tests/vectors.rs`.
 *
 * A block is entered by returning from a signal handler whose context was replaced by the block's inputs, and left by the
 * BRK behind it (or by the fault that it takes), whose handler finds the outputs in its context. So the harness has no
 * assembly, and a block may use every register.
 *
 * Standard input: struct header, code_bytes of code, then one struct state a block. Standard output: one struct state a block.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

struct header {
	uint64_t code;
	uint64_t code_bytes;
	uint64_t window;
	uint64_t window_bytes;
	uint64_t blocks;
};

#define WINDOW_BYTES 1024

/* The layout that `State::to_bytes` in oracle.rs writes. */
struct state {
	uint64_t x[31];
	uint64_t sp;
	uint64_t pc;
	uint32_t nzcv;
	uint32_t fpsr;
	uint64_t outcome;
	uint64_t unused;
	unsigned __int128 v[32];
	uint8_t window[WINDOW_BYTES];
};

static struct header header;
static struct state state;
static uint64_t done;

static void read_all(void *to, size_t len)
{
	for (char *at = to; len;) {
		ssize_t got = read(0, at, len);
		if (got <= 0)
			_exit(2);
		at += got;
		len -= got;
	}
}

static void write_all(const void *from, size_t len)
{
	for (const char *at = from; len;) {
		ssize_t put = write(1, at, len);
		if (put <= 0)
			_exit(3);
		at += put;
		len -= put;
	}
}

static struct fpsimd_context *simd(ucontext_t *context)
{
	struct _aarch64_ctx *record = (void *)context->uc_mcontext.__reserved;
	while (record->magic != FPSIMD_MAGIC) {
		if (!record->magic)
			_exit(4);
		record = (void *)((char *)record + record->size);
	}
	return (void *)record;
}

static void handler(int signal, siginfo_t *info, void *argument)
{
	ucontext_t *context = argument;
	mcontext_t *machine = &context->uc_mcontext;
	struct fpsimd_context *fp = simd(context);
	(void)info;

	if (done) {
		memcpy(state.x, machine->regs, sizeof state.x);
		state.sp = machine->sp;
		state.pc = machine->pc;
		state.nzcv = machine->pstate >> 28;
		state.fpsr = fp->fpsr;
		state.outcome = signal == SIGTRAP ? 0 : signal == SIGILL ? 1 : 2;
		memcpy(state.v, fp->vregs, sizeof state.v);
		memcpy(state.window, (void *)header.window, WINDOW_BYTES);
		write_all(&state, sizeof state);
	}
	if (done++ == header.blocks)
		_exit(0);
	read_all(&state, sizeof state);
	memcpy(machine->regs, state.x, sizeof state.x);
	machine->sp = state.sp;
	machine->pc = state.pc;
	machine->pstate = (machine->pstate & 0x0fffffff) | (uint64_t)state.nzcv << 28;
	fp->fpsr = state.fpsr;
	fp->fpcr = 0;
	memcpy(fp->vregs, state.v, sizeof state.v);
	memcpy((void *)header.window, state.window, WINDOW_BYTES);
}

static void map(uint64_t at, uint64_t len, int protection)
{
	uint64_t start = at & ~0xfffffull;
	uint64_t end = (at + len + 0xfffff) & ~0xfffffull;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
	if (mmap((void *)start, end - start, protection, flags, -1, 0) == MAP_FAILED)
		_exit(5);
}

int main(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };

	read_all(&header, sizeof header);
	if (header.window_bytes != WINDOW_BYTES)
		return 6;
	map(header.window, header.window_bytes, PROT_READ | PROT_WRITE);
	map(header.code, header.code_bytes, PROT_READ | PROT_WRITE | PROT_EXEC);
	read_all((void *)header.code, header.code_bytes);
	__builtin___clear_cache((char *)header.code, (char *)header.code + header.code_bytes);
	sigaltstack(&alternate, NULL);
	sigaction(SIGTRAP, &action, NULL);
	sigaction(SIGILL, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	raise(SIGTRAP);
	return 7;
}
