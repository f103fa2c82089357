// Flash interface of STM32F4 and F7 over a plain memory, and the converter that measures the battery.
//
// Renode's memory takes any store at once. What a flash adds is done here: sectors of the board's own
// sizes, the lock, operations that are counted, and a power cut in one of them, which is torn.
using System;
using System.Collections.Generic;
using System.Linq;
using Antmicro.Renode.Core;
using Antmicro.Renode.Logging;
using Antmicro.Renode.Peripherals.Bus;
using Antmicro.Renode.Peripherals.CPU;
using Antmicro.Renode.Peripherals.Memory;

namespace Antmicro.Renode.Peripherals.Tinyfleet
{
    public class Stm32Flash : IDoubleWordPeripheral, IKnownSize
    {
        /// `sectors`: their sizes in bytes, in order of address.
        public Stm32Flash(IMachine machine, MappedMemory memory, Stm32Serial serial, string sectors)
        {
            this.machine = machine;
            this.memory = memory;
            this.serial = serial;
            serial.FlashOperations = () => Operations;
            sizes = sectors.Split(' ').Select(int.Parse).ToArray();
            Reset();
        }

        public void Reset()
        {
            access = status = 0;
            control = Lock;
            key = 0;
            isLooked = false;
        }

        public uint ReadDoubleWord(long offset)
        {
            switch(offset)
            {
            case 0x00:
                return access;
            case 0x0C:
                // The port looks twice at every word that it has programmed: is it done, and well?
                if((control & Program) != 0)
                {
                    isLooked = !isLooked;
                    if(isLooked)
                    {
                        Done(TearWord);
                    }
                }
                return status;
            case 0x10:
                return control;
            default:
                return 0;
            }
        }

        public void WriteDoubleWord(long offset, uint value)
        {
            switch(offset)
            {
            case 0x00:
                access = value;
                break;
            case 0x04:
                Unlock(value);
                break;
            case 0x0C:
                status &= ~(value & 0xF3);
                break;
            case 0x10:
                Control(value);
                break;
            }
        }

        /// Power fails in this operation, counted from the next one as 1; in none with 0.
        public void CutPowerAt(long operations, int seed)
        {
            cutAt = operations == 0 ? 0 : Operations + operations;
            chance = new Random(seed);
            Remember();
        }

        /// Power is back: the flash is as it was when it failed, whatever the core did until it stood.
        public void PowerOn()
        {
            if(atTheCut != null)
            {
                memory.WriteBytes(0, atTheCut, 0, atTheCut.Length);
                atTheCut = null;
                Remember();
            }
        }

        /// An operation of one of the board's flashes; returns whether the power fails in it.
        public bool CountOperation()
        {
            Operations++;
            return Operations == cutAt;
        }

        /// It does, with the content of this flash as it is now.
        public void FailPower()
        {
            atTheCut = Content();
            cutAt = 0;
            before = null;
            foreach(var cpu in machine.SystemBus.GetCPUs())
            {
                cpu.IsHalted = true;
            }
            serial.Owner.Send((byte)'F', 0, Operations);
            serial.Owner.Send((byte)'P', 0);
        }

        /// Drawn by the seed of the power cut.
        public byte AnyByte()
        {
            return (byte)chance.Next(256);
        }

        public bool HasPower { get { return atTheCut == null; } }

        /// Words programmed and sectors erased, in this flash and the one beside the microcontroller.
        public long Operations { get; private set; }

        public long Size { get { return 0x400; } }

        private void Unlock(uint value)
        {
            if(key == 0 && value == 0x45670123)
            {
                key = 1;
            }
            else if(key == 1 && value == 0xCDEF89AB)
            {
                key = 0;
                control &= ~Lock;
            }
            else
            {
                // Until the next reset.
                key = -1;
                this.Log(LogLevel.Error, "0x{0:X8} is no key of the flash", value);
            }
        }

        private void Control(uint value)
        {
            if((control & Lock) != 0)
            {
                this.Log(LogLevel.Error, "the flash is locked");
                return;
            }
            control = value & ~Start;
            isLooked = false;
            if((value & Start) != 0 && (value & SectorErase) != 0)
            {
                Erase((int)(value >> 3 & 0xF));
            }
        }

        private void Erase(int sector)
        {
            if(sector >= sizes.Length)
            {
                status |= WriteProtection;
                return;
            }
            var start = sizes.Take(sector).Sum();
            erased = new KeyValuePair<int, int>(start, sizes[sector]);
            var ones = Enumerable.Repeat((byte)0xFF, sizes[sector]).ToArray();
            memory.WriteBytes(start, ones, 0, ones.Length);
            Done(TearSector);
        }

        private void Done(Action<byte[]> tear)
        {
            if(CountOperation())
            {
                var now = Content();
                tear(now);
                memory.WriteBytes(0, now, 0, now.Length);
                FailPower();
            }
            else
            {
                Remember();
            }
        }

        // Some of the bits that should have become zeros have.
        private void TearWord(byte[] now)
        {
            for(var i = 0; i < now.Length; i++)
            {
                if(now[i] != before[i])
                {
                    now[i] = (byte)(before[i] & (now[i] | AnyByte()));
                }
            }
        }

        // Some of the bits that should have become ones have.
        private void TearSector(byte[] now)
        {
            for(var i = erased.Key; i < erased.Key + erased.Value; i++)
            {
                now[i] = (byte)(before[i] | AnyByte());
            }
        }

        // The first word behind an arming may come long after; those before it are whole.
        private void Remember()
        {
            before = cutAt == 0 ? null : Content();
        }

        private byte[] Content()
        {
            return memory.ReadBytes(0, (int)memory.Size);
        }

        private const uint Program = 1u << 0;
        private const uint SectorErase = 1u << 1;
        private const uint WriteProtection = 1u << 4;
        private const uint Start = 1u << 16;
        private const uint Lock = 1u << 31;

        private uint access, control, status;
        private int key;
        private bool isLooked;
        private long cutAt;
        private byte[] before, atTheCut;
        private KeyValuePair<int, int> erased;
        private Random chance;
        private readonly IMachine machine;
        private readonly MappedMemory memory;
        private readonly Stm32Serial serial;
        private readonly int[] sizes;
    }

    /// ADC1: one conversion of the channel that the battery is at, done at once.
    public class Stm32Battery : IDoubleWordPeripheral, IKnownSize
    {
        public void Reset()
        {
        }

        public uint ReadDoubleWord(long offset)
        {
            switch(offset)
            {
            case 0x00:
                return 2; // end of conversion
            case 0x4C:
                return (uint)(Percent * 4095 / 100 + 0.5);
            default:
                return 0;
            }
        }

        public void WriteDoubleWord(long offset, uint value)
        {
        }

        public double Percent { get; set; } = 100;

        public long Size { get { return 0x400; } }
    }
}
