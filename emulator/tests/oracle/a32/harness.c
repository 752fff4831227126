/*
 * Executes recorded blocks on a 32-bit Arm Linux, real or under qemu-arm: the oracle of `emulator/tests/vectors_a32.rs`.
 *
 * As ../harness.c, for A32: a block ends at a BKPT. Standard input: struct header, code_bytes of code, then one struct state a
 * block. Standard output: one struct state a block.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

struct header {
	uint32_t code;
	uint32_t code_bytes;
	uint32_t window;
	uint32_t window_bytes;
	uint32_t blocks;
};

#define WINDOW_BYTES 1024

/* The layout that `State::to_bytes` in state.rs writes. */
struct state {
	uint32_t r[15];
	uint32_t pc;
	uint32_t cpsr;
	uint32_t outcome;
	uint64_t d[32];
	uint8_t window[WINDOW_BYTES];
};

/* N, Z, C, V, Q, GE. */
#define CPSR_FLAGS 0xf80f0000u

/* The record of VFP in uc_regspace, as the kernel's asm/ucontext.h has it. */
#define VFP_MAGIC 0x56465001

struct vfp_record {
	uint32_t magic;
	uint32_t size;
	uint64_t d[32];
	uint32_t fpscr;
};

static struct header header;
static struct state state;
static uint32_t done;

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

static struct vfp_record *vfp(ucontext_t *context)
{
	uint32_t *record = (uint32_t *)context->uc_regspace;
	while (record[0] != VFP_MAGIC) {
		if (!record[0] || !record[1])
			_exit(4);
		record += record[1] / 4;
	}
	return (struct vfp_record *)record;
}

static void handler(int signal, siginfo_t *info, void *argument)
{
	ucontext_t *context = argument;
	mcontext_t *machine = &context->uc_mcontext;
	struct vfp_record *fp = vfp(context);
	(void)info;

	if (done) {
		/* r0 to r10, fp, ip, sp, lr and pc lie in this order. */
		memcpy(state.r, (void *)&machine->arm_r0, sizeof state.r);
		state.pc = machine->arm_pc;
		state.cpsr = machine->arm_cpsr & CPSR_FLAGS;
		state.outcome = signal == SIGTRAP ? 0 : signal == SIGILL ? 1 : 2;
		memcpy(state.d, fp->d, sizeof state.d);
		memcpy(state.window, (void *)header.window, WINDOW_BYTES);
		write_all(&state, sizeof state);
	}
	if (done++ == header.blocks)
		_exit(0);
	read_all(&state, sizeof state);
	memcpy((void *)&machine->arm_r0, state.r, sizeof state.r);
	machine->arm_pc = state.pc;
	/* No IT, no T32, and little-endian: a block may have set E. */
	machine->arm_cpsr = (machine->arm_cpsr & ~(CPSR_FLAGS | 0x0600fe20u)) | state.cpsr;
	fp->fpscr = 0;
	memcpy(fp->d, state.d, sizeof state.d);
	memcpy((void *)header.window, state.window, WINDOW_BYTES);
}

static void map(uint32_t at, uint32_t len, int protection)
{
	uint32_t start = at & ~0xfffffu;
	uint32_t end = (at + len + 0xfffffu) & ~0xfffffu;
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
