//! The `tablewalk` pattern: pages that hold live translation tables, which the hardware updates.
//!
//! Steps come in pairs. In an odd step some slots are armed: their descriptors are stored anew as
//! [`State::Fresh`], and each is accessed at once, by a read (the walker sets AF: [`State::Clean`]) or by a write (the
//! walker sets AF and clears AP\[2\]: [`State::Dirty`]). In the even step that follows, the slots left clean are
//! written through, and nothing is stored to the table: that step the table's page is dirty by the walker's hand
//! alone, which is what a dirty log may miss.
//!
//! Every byte can be predicted, although hardware may set AF early. The architecture allows a speculative access to
//! set AF, and never lets one clear AP\[2\] (DDI 0487 D8.5.3 and D8.5.4): so a fresh descriptor is always
//! accessed in the step that stores it, and outside that step all descriptors have AF = 1, where speculation has
//! nothing left to change. Other vCPUs may walk the table speculatively, too; that changes nothing for the same reason.

use super::{Part, Place, bytes};
use crate::descriptor::{State, page_descriptor};
use crate::random::{coprime_stride, key};
use crate::{How, TableLayout, Write};

impl Part {
    pub(super) fn tablewalk(&self, place: &Place, vcpu: u32, step: u64, sink: &mut impl FnMut(Write)) {
        let mut table = Table { part: self, place, vcpu, layout: self.table_layout(place, vcpu), step, sink };
        if step == 0 {
            for slot in 0..table.layout.slots {
                table.store(slot);
                table.write_through(slot);
            }
            return;
        }
        let arms = step % 2 == 1;
        for i in 0..self.work {
            let (slot, by_write) = table.choice((step - 1) / 2, i);
            match (arms, by_write) {
                (true, true) => {
                    table.store(slot);
                    table.write_through(slot);
                }
                (true, false) => {
                    table.store(slot);
                    table.read(slot);
                }
                (false, true) => {}
                (false, false) => table.write_through(slot),
            }
        }
    }
}

/// One vCPU's table in one step.
struct Table<'a, F> {
    part: &'a Part,
    place: &'a Place,
    vcpu: u32,
    layout: TableLayout,
    step: u64,
    sink: &'a mut F,
}

impl<F: FnMut(Write)> Table<'_, F> {
    /// The `i`th slot of a pair of steps, all different, and whether its first access is a write. The first one never
    /// is, so that the pair's second step has something to do.
    fn choice(&self, pair: u64, i: u64) -> (u32, bool) {
        let slots = u64::from(self.layout.slots);
        let start = self.part.random(self.place, Some(self.vcpu), pair, u64::MAX).below(slots);
        let slot = (start + i * coprime_stride(slots)) % slots;
        let by_write = i > 0 && self.part.random(self.place, Some(self.vcpu), pair, i).below(3) == 0;
        (slot as u32, by_write)
    }

    fn offset_of_page(&self, slot: u32) -> u64 {
        let pages = self.layout.first_page.checked_offset_from(self.place.region_start);
        pages.expect("the table's pages lie in the region") + u64::from(slot) * self.place.tables.granule().bytes()
    }

    fn descriptor(&mut self, slot: u32, state: State, how: How) {
        let table = self.layout.table.checked_offset_from(self.place.region_start);
        let offset = table.expect("the table lies in the region") + u64::from(slot) * 8;
        let page = self.place.region_start.checked_add(self.offset_of_page(slot));
        let page = page.expect("the table's pages lie in the region");
        let value = page_descriptor(self.place.tables.granule(), page, state);
        (self.sink)(Write { offset, len: 8, data: bytes(u128::from(value)), how });
    }

    fn store(&mut self, slot: u32) {
        self.descriptor(slot, State::Fresh, How::Descriptor { slot });
    }

    fn read(&mut self, slot: u32) {
        self.descriptor(slot, State::Clean, How::WalkedByRead { slot });
    }

    fn write_through(&mut self, slot: u32) {
        self.descriptor(slot, State::Dirty, How::WalkedByWrite { slot });
        let number = u64::from(self.part.pattern.number());
        let value = key(self.place.seed, [number, u64::from(self.vcpu), self.step, u64::from(slot), 1]);
        let within = (value >> 32) % (self.place.tables.granule().bytes() / 8) * 8;
        let offset = self.offset_of_page(slot) + within;
        (self.sink)(Write { offset, len: 8, data: bytes(u128::from(value)), how: How::ThroughTable { slot } });
    }
}
