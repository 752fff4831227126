/*
 * The SPSR of the mode that an AArch32 EL1 traps from, as EL2 in AArch64 sees and sets it; KVM saves and restores vCPUs by it.
 *
 * DDI 0487 G1.22.1: SPSR_irq at EL2 is the SPSR of IRQ mode, whatever mode is current. QEMU keeps that of the current mode in a place
 * of its own, and brings the two together when AArch32 changes its mode, not when AArch64 is entered or left. So EL2 reads a
 * value that is old, and what it writes is lost: a vCPU that traps in IRQ mode goes on with another vCPU's SPSR.
 *
 *   aarch64-linux-gnu-gcc -O1 -ffreestanding -nostdlib -fno-pic -no-pie -mgeneral-regs-only -mstrict-align -Wl,-Ttext=0x40080000 -Wl,--build-id=none \
 *     -o spsr-irq lab/reproducers/qemu-spsr-irq.c
 *   timeout 10 qemu-system-aarch64 -M virt,virtualization=on -cpu cortex-a57 -m 64 -nographic -nodefaults -serial stdio -kernel spsr-irq
 *
 * An Arm CPU says "right" twice, QEMU (seen with 7.2) "WRONG" twice.
 */
#include <stdint.h>

#define GUEST_WROTE 0x600001dfu
#define EL2_WROTE 0xa00001dfu

static volatile uint32_t *const uart = (uint32_t *)0x09000000;

asm(".pushsection .text.start, \"ax\"\n"
    ".global _start\n_start:\n"
    "  adr x0, stack_top\n  mov sp, x0\n"
    "  adr x0, vectors\n  msr vbar_el2, x0\n"
    "  mov x0, #0\n  msr hcr_el2, x0\n"            /* RW clear: EL1 is AArch32 */
    "  mov x0, #0x1d2\n  msr spsr_el2, x0\n"        /* A32: IRQ mode; A, I and F masked */
    "  adr x0, guest\n  msr elr_el2, x0\n"
    "  ldr w1, =0x600001df\n  eret\n"
    "  .ltorg\n"
    /* A32, in IRQ mode. */
    "  .balign 4\nguest:\n"
    "  .inst 0xe16ff001\n"                         /* msr spsr_fsxc, r1 */
    "  .inst 0xe1400070\n"                         /* hvc #0 */
    "  .inst 0xe14f2000\n"                         /* mrs r2, spsr */
    "  .inst 0xe1400071\n"                         /* hvc #1 */
    /* DDI 0487 D1.3.1: synchronous, from a lower level in AArch32. */
    "  .balign 2048\nvectors:\n"
    "  .org vectors + 0x600\n"
    "  mrs x0, esr_el2\n  and w0, w0, #0xffff\n  cbnz w0, 1f\n"
    "  mrs x0, spsr_irq\n  ldr w1, =0x600001df\n  bl judge_read\n"
    "  ldr w0, =0xa00001df\n  msr spsr_irq, x0\n  eret\n"
    "1: mov w0, w2\n  b judge_written\n"
    "  .ltorg\n"
    "  .org vectors + 0x800\n"
    "  .space 4096\nstack_top:\n"
    ".popsection\n");

static void text(const char *words)
{
	while (*words)
		*uart = *words++;
}

static void hex(uint32_t value)
{
	for (int shift = 28; shift >= 0; shift -= 4)
		*uart = "0123456789abcdef"[value >> shift & 15];
}

static void tell(const char *what, uint32_t found, uint32_t expected)
{
	text(what);
	hex(found);
	text(" where ");
	hex(expected);
	text(found == expected ? " was written: right\n" : " was written: WRONG\n");
}

void judge_read(uint32_t found)
{
	tell("EL2 reads the guest's SPSR_irq as ", found, GUEST_WROTE);
}

__attribute__((noreturn)) void judge_written(uint32_t found)
{
	tell("the guest reads SPSR as ", found, EL2_WROTE);
	/* PSCI SYSTEM_OFF */
	register uint64_t function asm("x0") = 0x84000008;
	asm volatile("smc #0" : : "r"(function));
	for (;;)
		;
}
