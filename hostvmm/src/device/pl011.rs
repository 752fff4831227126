//! The PL011 UART (DDI 0183): transmits to a line buffer, receives nothing.
//!
//! [`Pl011`] is pure: a store may yield a whole line of console output as the guest wrote it ([`console_text`] makes it safe to
//! print), and [`Pl011::interrupt`] is the level of the interrupt line afterwards. The transmit FIFO drains at once, so the transmit interrupt is raised by every character.
//! [`Pl011State`] is all of it, to go on elsewhere.

/// Longest console line in bytes, its end included; a longer one is shown in pieces, so that a guest cannot make the host hoard it.
pub const MAX_LINE_BYTES: usize = 1024;

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
/// PeriphID0–3 and PCellID0–3 (DDI 0183 3.3.14 and on): part 0x011, designer Arm, revision r1p5.
const ID_FIRST: u64 = 0xfe0;
const ID: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Transmit FIFO empty, receive FIFO empty.
const FR_TXFE: u32 = 1 << 7;
const FR_RXFE: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
/// The eleven interrupt sources.
const INT_ALL: u32 = 0x7ff;
/// Reset values (DDI 0183 table 3-1).
const CR_RESET: u32 = 0x300;
const IFLS_RESET: u32 = 0x12;

/// A UART's registers, by the names of DDI 0183, and the line that is being written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pl011State {
    /// UARTIBRD, UARTFBRD, UARTLCR_H, UARTCR, UARTIFLS, UARTIMSC, UARTRIS.
    pub registers: [u32; 7],
    /// Bytes since the last whole line; fewer than [`MAX_LINE_BYTES`].
    pub line: Vec<u8>,
}

/// A state that no UART can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no PL011 has such registers, or a line so long")]
pub struct BadPl011;

/// The UART's registers and the line that is being written.
#[derive(Clone, Debug)]
pub struct Pl011 {
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    line: Vec<u8>,
}

impl Default for Pl011 {
    fn default() -> Self {
        Self { ibrd: 0, fbrd: 0, lcr_h: 0, cr: CR_RESET, ifls: IFLS_RESET, imsc: 0, ris: 0, line: Vec::new() }
    }
}

/// Bits that the registers of [`Pl011State`] have.
const MASKS: [u32; 7] = [0xffff, 0x3f, 0xff, 0xffff, 0x3f, INT_ALL, INT_ALL];

impl TryFrom<&Pl011State> for Pl011 {
    type Error = BadPl011;

    fn try_from(state: &Pl011State) -> Result<Self, BadPl011> {
        let fits = state.registers.iter().zip(MASKS).all(|(value, mask)| value & !mask == 0);
        if !fits || state.line.len() >= MAX_LINE_BYTES || state.line.contains(&b'\n') {
            return Err(BadPl011);
        }
        let [ibrd, fbrd, lcr_h, cr, ifls, imsc, ris] = state.registers;
        Ok(Self { ibrd, fbrd, lcr_h, cr, ifls, imsc, ris, line: state.line.clone() })
    }
}

impl Pl011 {
    /// All of it.
    pub fn state(&self) -> Pl011State {
        let Self { ibrd, fbrd, lcr_h, cr, ifls, imsc, ris, line } = self;
        Pl011State { registers: [*ibrd, *fbrd, *lcr_h, *cr, *ifls, *imsc, *ris], line: line.clone() }
    }

    /// What a load at `offset` reads.
    pub fn read(&self, offset: u64) -> u64 {
        let value = match offset {
            FR => FR_TXFE | FR_RXFE,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.ris,
            MIS => self.ris & self.imsc,
            _ => identification(offset).map_or(0, u32::from),
        };
        u64::from(value)
    }

    /// Takes a store at `offset`; returns the console line that it completes, its end included, if it does.
    pub fn write(&mut self, offset: u64, data: u64) -> Option<Vec<u8>> {
        let value = data as u32; // registers have 32 bits; what is stored above them is not there
        match offset {
            DR => return self.transmit(value as u8),
            IBRD => self.ibrd = value & 0xffff,
            FBRD => self.fbrd = value & 0x3f,
            LCR_H => self.lcr_h = value & 0xff,
            CR => self.cr = value & 0xffff,
            IFLS => self.ifls = value & 0x3f,
            IMSC => self.imsc = value & INT_ALL,
            ICR => self.ris &= !value,
            _ => {}
        }
        None
    }

    /// The level of the interrupt line.
    pub fn interrupt(&self) -> bool {
        self.ris & self.imsc != 0
    }

    /// What has been written since the last whole line, for the end of a run.
    pub fn take_partial_line(&mut self) -> Option<Vec<u8>> {
        (!self.line.is_empty()).then(|| std::mem::take(&mut self.line))
    }

    fn transmit(&mut self, byte: u8) -> Option<Vec<u8>> {
        self.ris |= INT_TX;
        self.line.push(byte);
        if byte == b'\n' {
            return self.take_partial_line();
        }
        if self.line.len() >= MAX_LINE_BYTES { self.take_partial_line() } else { None }
    }
}

fn identification(offset: u64) -> Option<u8> {
    let index = offset.checked_sub(ID_FIRST)?;
    if index % 4 != 0 {
        return None;
    }
    ID.get(usize::try_from(index / 4).ok()?).copied()
}

/// A console line without its end, as text that cannot steer a terminal.
pub fn console_text(line: &[u8]) -> String {
    printable(line.strip_suffix(b"\n").unwrap_or(line))
}

/// Guest bytes as text that cannot steer a terminal.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches('\r');
    text.chars()
        .map(|c| match c {
            '\t' | '\n' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uart_goes_on_from_its_state_and_no_other_state_is_taken() {
        let mut uart = Pl011::default();
        uart.write(IMSC, u64::from(INT_TX));
        uart.write(IBRD, 0x1234);
        for byte in b"half a " {
            uart.write(DR, u64::from(*byte));
        }
        let state = uart.state();
        let mut there = Pl011::try_from(&state).unwrap();
        assert_eq!(there.state(), state);
        assert!(there.interrupt());
        assert_eq!(there.read(IBRD), 0x1234);
        b"line".iter().for_each(|byte| drop(there.write(DR, u64::from(*byte))));
        assert_eq!(there.write(DR, u64::from(b'\n')).as_deref(), Some(&b"half a line\n"[..]));
        for index in 0..7 {
            let mut bad = state.clone();
            bad.registers[index] = 0x1_0000;
            assert_eq!(Pl011::try_from(&bad).unwrap_err(), BadPl011);
        }
        for line in [vec![b'a'; MAX_LINE_BYTES], b"two\nlines".to_vec()] {
            assert!(Pl011::try_from(&Pl011State { line, ..state.clone() }).is_err());
        }
    }

    #[test]
    fn characters_become_lines() {
        let mut uart = Pl011::default();
        let lines: Vec<_> = b"hello\r\nworld\n!".iter().filter_map(|b| uart.write(DR, u64::from(*b))).collect();
        assert_eq!(lines, [&b"hello\r\n"[..], b"world\n"]);
        assert_eq!([console_text(&lines[0]), console_text(&lines[1])], ["hello", "world"]);
        assert_eq!(uart.take_partial_line().as_deref(), Some(&b"!"[..]));
        assert_eq!(uart.take_partial_line(), None);
    }

    #[test]
    fn an_endless_line_is_shown_in_bounded_pieces() {
        let mut uart = Pl011::default();
        let lines: Vec<_> = (0..3 * MAX_LINE_BYTES).filter_map(|_| uart.write(DR, 0x41)).collect();
        assert_eq!(lines.len(), 3);
        assert!(uart.line.is_empty());
    }

    #[test]
    fn a_guest_cannot_steer_the_terminal() {
        let mut uart = Pl011::default();
        let lines: Vec<_> = b"\x1b[2J\x07\xff\n".iter().filter_map(|b| uart.write(DR, u64::from(*b))).collect();
        assert_eq!(lines, [b"\x1b[2J\x07\xff\n"]);
        assert_eq!(console_text(&lines[0]), "\u{fffd}[2J\u{fffd}\u{fffd}");
    }

    #[test]
    fn the_transmit_interrupt_is_raised_masked_and_cleared() {
        let mut uart = Pl011::default();
        uart.write(DR, 0x41);
        assert_eq!((uart.read(RIS), uart.read(MIS), uart.interrupt()), (0x20, 0, false));
        uart.write(IMSC, 0x20);
        assert_eq!((uart.read(MIS), uart.interrupt()), (0x20, true));
        uart.write(ICR, 0x20);
        assert!(!uart.interrupt());
    }

    #[test]
    fn drivers_recognise_it() {
        let uart = Pl011::default();
        let id: Vec<u64> = (0..8).map(|i| uart.read(ID_FIRST + 4 * i)).collect();
        assert_eq!(id, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!(uart.read(FR), 0x90);
        assert_eq!(uart.read(CR), 0x300);
        assert_eq!(uart.read(0xfe1), 0);
    }
}
